//! Errors as the API sends them, and replies that are broken on plan.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};

use super::clock::Clock;
use super::faults::Fault;

/// An error of the API.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) param: Option<&'static str>,
    pub(super) message: String,
}

impl Refusal {
    /// Refuses a request that is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Refusal {
        let (kind, message) = ("invalid_request_error", message.into());
        Refusal { status: 400, kind, code: Some(kind), param: None, message }
    }

    /// Refuses a request that is wrong in one parameter.
    pub(super) fn of_param(param: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(param), code: None, ..Refusal::bad(message) }
    }

    /// Refuses a request for something that is not there.
    pub(super) fn missing(message: impl Into<String>) -> Refusal {
        Refusal { status: 404, code: None, ..Refusal::bad(message) }
    }

    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body())).into_response()
    }
}

/// Returns the error of a planned failure that is a status.
pub(super) fn planned(status: u16, code: &'static str) -> Refusal {
    Refusal { status, kind: code, code: Some(code), param: None, message: "planned failure".into() }
}

/// Says when to come back, in the client's time.
pub(super) fn come_back(response: &mut Response, clock: &Clock, wait: Duration) {
    let wait = clock.for_client(wait);
    let headers = response.headers_mut();
    // Seconds that are whole are sent as such, as the real API does.
    let seconds =
        if wait.subsec_nanos() == 0 { wait.as_secs().to_string() } else { format!("{:.3}", wait.as_secs_f64()) };
    for (name, value) in [("retry-after", seconds), ("retry-after-ms", wait.as_millis().to_string())] {
        headers.insert(name, value.parse().expect("digits are a header's value"));
    }
}

/// Breaks a reply as planned: the work is done, its answer does not arrive. Other failures leave it as it is. A reply that
/// hangs is cut after `hang`, by the clock on the wall, where there is one.
pub(super) async fn broken(fault: Option<&Fault>, hang: Option<Duration>, whole: Response) -> Response {
    match fault {
        Some(Fault::Hang) => {
            match hang {
                Some(hang) => tokio::time::sleep(hang).await,
                None => std::future::pending().await,
            }
            cut()
        }
        Some(Fault::Garbage) => (StatusCode::OK, "<html>not JSON</html>").into_response(),
        Some(Fault::Cut) => cut(),
        _ => whole,
    }
}

/// Returns a reply whose connection ends in the middle of the body.
fn cut() -> Response {
    let begun = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{\"id\": "))]);
    // What is written together with its end would not be sent at all.
    let end = futures::stream::once(async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(std::io::Error::other("planned cut"))
    });
    Response::new(Body::from_stream(begun.chain(end)))
}
