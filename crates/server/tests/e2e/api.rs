//! A client of the server's HTTP API, that keeps every answer it gets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// How long one request may take on a busy machine.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Speaks to one server after another: it is told where the current one listens.
pub struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    secret: String,
    base_url: Mutex<String>,
    answers: Arc<Mutex<Vec<String>>>,
}

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Checks that it says what is not to be had now, by `code`, and when to ask again.
    #[track_caller]
    pub fn unavailable(&self, code: &str) {
        assert_eq!(self.status, 503, "{}", self.text);
        let body = self.json();
        assert_eq!(body["success"], false);
        assert_eq!(body["code"], code);
        let retry_after = self.headers.get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok());
        let seconds: Option<u32> = retry_after.and_then(|value| value.parse().ok());
        assert!(seconds > Some(0), "retry-after is {retry_after:?}");
    }

    /// The body.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

impl Api {
    /// A client that knows no server yet.
    pub fn new(secret: &str) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            secret: secret.to_owned(),
            base_url: Mutex::default(),
            answers: Arc::default(),
        }
    }

    /// The server listens there from now on.
    pub fn listens_on(&self, base_url: &str) {
        let mut current = self.base_url.lock().unwrap_or_else(PoisonError::into_inner);
        base_url.clone_into(&mut current);
    }

    /// Where the server listens.
    pub fn base_url(&self) -> String {
        let current = self.base_url.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Headers and bodies of all answers so far.
    pub fn answers(&self) -> Vec<String> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.clone()
    }

    /// One request; an error is one of the connection.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.base_url() + path)
            .header("authorization", format!("Bearer {}", self.secret));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body)))
            .expect("the request is well-formed");
        let answered = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| format!("{error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
            Ok::<_, String>(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                text: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            })
        };
        let answer = tokio::time::timeout(REQUEST_LIMIT, answered)
            .await
            .map_err(|_| format!("{path} was not answered within {REQUEST_LIMIT:?}"))??;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(format!("{:?} {}", answer.headers, answer.text));
        Ok(answer)
    }

    /// `GET path`.
    #[track_caller]
    pub fn get(&self, path: &str) -> impl Future<Output = Answer> {
        let path = path.to_owned();
        async move {
            let answer = self.request(Method::GET, &path, &[], b"").await;
            answer.unwrap_or_else(|error| panic!("GET {path}: {error}"))
        }
    }

    /// `POST /api/webhooks/claude` with `body` as it stands; an error is one of the connection.
    pub async fn try_webhook(
        &self,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let body = body.to_string();
        let path = "/api/webhooks/claude";
        self.request(Method::POST, path, &headers, body.as_bytes())
            .await
    }

    /// The same, from a server that is there.
    pub async fn webhook(&self, body: &Value) -> Answer {
        let answer = self.try_webhook(body, &[]).await;
        answer.unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    /// `type` with `fields`, in the documented form; gives the answer of a success.
    pub async fn call(&self, kind: &str, fields: Value) -> Value {
        self.webhook(&wrapped(kind, fields)).await.ok()
    }
}

/// `{"data":{"type":kind,…fields}}`.
pub fn wrapped(kind: &str, fields: Value) -> Value {
    let mut data = json!({ "type": kind });
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    json!({ "data": data })
}
