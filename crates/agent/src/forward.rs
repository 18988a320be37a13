//! Offers the server's socket on loopback, for programs that speak only TCP: Claude and git.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time;

use crate::dial::dial;

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Buffered in each direction of a connection, in bytes.
const COPY_BYTES: usize = 16 * 1024;
/// The wait after a failed accept: no descriptor was free, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often a client that waits for the server is looked after.
const GONE_CHECK: Duration = Duration::from_millis(250);

/// Forwards every connection to `listener`, bytewise, to one of its own at `socket`. While the
/// server is away, connections are held open and dialled on.
pub async fn serve(listener: TcpListener, socket: PathBuf) {
    let socket: Rc<Path> = socket.into();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((client, _)) => {
                let socket = Rc::clone(&socket);
                spawn_local(async move {
                    forward(client, &socket).await;
                    drop(permit);
                });
            }
            Err(_) => time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn forward(mut client: TcpStream, socket: &Path) {
    // Both fail only where the connection is lost already; the copy finds that out.
    let _ = client.set_nodelay(true);
    let Some(mut server) = dial_for(&client, socket).await else {
        return;
    };
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, COPY_BYTES, COPY_BYTES).await;
}

/// Dials until there is a connection or the client has gone. A request whose sender gave up is
/// not delivered late: it may cost money, and its sender has asked again since.
async fn dial_for(client: &TcpStream, socket: &Path) -> Option<UnixStream> {
    let dialled = dial(socket);
    tokio::pin!(dialled);
    loop {
        tokio::select! {
            biased;
            server = &mut dialled => return Some(server),
            () = time::sleep(GONE_CHECK) => {}
        }
        tokio::select! {
            biased;
            state = client.ready(Interest::READABLE) => {
                if state.is_ok_and(|state| state.is_read_closed()) {
                    return None;
                }
            }
            () = ready(()) => {}
        }
    }
}
