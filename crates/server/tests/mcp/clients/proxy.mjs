// The conformance suites can send no headers of their own, so this stands between: it adds the
// bearer token, and names the server where the client named the proxy. A foreign Host or Origin,
// which is how the suites probe for DNS rebinding, goes through as it is.
import http from 'node:http';

// Listens on a free port of 127.0.0.1; gives `{ url, close }`, the url with the target's path.
export async function startProxy(target, token) {
  const upstream = new URL(target);
  const server = http.createServer((request, response) => {
    const own = `127.0.0.1:${server.address().port}`;
    const headers = { ...request.headers, authorization: `Bearer ${token}` };
    if (headers.host === own) headers.host = upstream.host;
    if (headers.origin === `http://${own}`) headers.origin = upstream.origin;
    const onward = http.request(
      {
        host: upstream.hostname,
        port: upstream.port,
        method: request.method,
        path: request.url,
        headers,
        // No connection is kept: a suite that is over must leave nothing open.
        agent: false,
      },
      (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        response.flushHeaders();
        answer.pipe(response);
      },
    );
    onward.on('error', (error) => {
      if (!response.headersSent) response.writeHead(502);
      response.end(`no answer from ${target}: ${error.message}\n`);
    });
    // Closing the stream is how a client of the newer revision cancels.
    response.on('close', () => onward.destroy());
    request.pipe(onward);
  });
  await new Promise((listening, failed) => {
    server.once('error', failed);
    server.listen(0, '127.0.0.1', listening);
  });
  const url = new URL(`http://127.0.0.1:${server.address().port}`);
  url.pathname = upstream.pathname;
  return {
    url: url.href,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
