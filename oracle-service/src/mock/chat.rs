//! POST /v1/chat/completions: failures on plan, limits, the answer, its time, its price.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::completion::Ask;
use super::faults::{Fault, Of};
use super::limits::{Standing, Taken};
use super::reply::{self, Refusal};
use super::{Entitled, Mock, lock};

pub(super) async fn complete(State(mock): State<Arc<Mock>>, _: Entitled, body: Bytes) -> Response {
    let (number, fault) = mock.faults.next(Of::Chat);
    match &fault {
        Some(Fault::Status { status, code, retry_after_s, bare }) => {
            let mut response = reply::planned(*status, code).into_response();
            if let Some(seconds) = retry_after_s {
                reply::come_back(&mut response, &mock.clock, Duration::from_secs(*seconds));
            }
            if !bare && *status == 429 {
                let standing = lock(&mock.limits).look(mock.clock.now());
                mock.tell_standing(&mut response, &standing);
            }
            return response;
        }
        // Broken replies are never charged: the work is not done.
        Some(Fault::Hang | Fault::Cut | Fault::Garbage) => {
            return reply::broken(fault.as_ref(), mock.hang(), Response::default()).await;
        }
        _ => {}
    }
    let ask = match Ask::read(&body, &mock.model) {
        Ok(ask) => ask,
        Err(refusal) => return refusal.into_response(),
    };
    let hash = name(&body);
    let taken = lock(&mock.limits).take(mock.clock.now(), ask.tokens_at_most());
    let mut response = match &taken.refused {
        Some(_) => mock.over_limit(&taken),
        None => match mock.answer_to(&ask, hash, fault.as_ref()) {
            Ok(completed) => {
                let time = mock.plan.latency.draw(mock.plan.seed, number, completed.tokens.completion);
                mock.wait(time).await;
                lock(&mock.bill).charge(hash, completed.tokens, false);
                Json(completed.body).into_response()
            }
            Err(refusal) => refusal.into_response(),
        },
    };
    mock.tell_standing(&mut response, &taken);
    response
}

/// A request on its way, whether its client waits for the answer or goes.
struct OnItsWay<'a>(&'a Mock);

impl<'a> OnItsWay<'a> {
    fn enter(mock: &'a Mock) -> OnItsWay<'a> {
        let in_flight = mock.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        mock.most_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        OnItsWay(mock)
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns a request's name on the bill.
pub(super) fn name(body: &[u8]) -> u128 {
    let hash = blake3::hash(body);
    u128::from_be_bytes(hash.as_bytes()[..16].try_into().expect("16 bytes"))
}

impl Mock {
    /// Lets a time of the mock's pass, as one of the requests on their way.
    async fn wait(&self, time: Duration) {
        let _on_its_way = OnItsWay::enter(self);
        if !time.is_zero() {
            tokio::time::sleep(self.clock.real(time)).await;
        }
    }

    fn over_limit(&self, taken: &Taken) -> Response {
        let Some(refused) = &taken.refused else { return Response::default() };
        let wait = self.clock.for_client(refused.wait);
        let message = format!(
            "Rate limit reached for {} on {} per min. Please try again in {}.",
            self.model,
            refused.limit,
            go_duration(wait)
        );
        let code = Some("rate_limit_exceeded");
        let refusal = Refusal { status: 429, kind: refused.limit, code, param: None, message };
        let mut response = refusal.into_response();
        if self.plan.headers {
            reply::come_back(&mut response, &self.clock, refused.wait);
        }
        response
    }

    fn tell_standing(&self, response: &mut Response, taken: &Taken) {
        if !self.plan.headers {
            return;
        }
        let headers = response.headers_mut();
        for (what, standing) in [("requests", taken.requests), ("tokens", taken.tokens)] {
            let Some(Standing { limit, remaining, reset }) = standing else { continue };
            let limit = self.clock.rate_for_client(limit).round();
            set(headers, what, "limit", limit.to_string());
            set(headers, what, "remaining", remaining.to_string());
            set(headers, what, "reset", go_duration(self.clock.for_client(reset)));
        }
    }
}

fn set(headers: &mut HeaderMap, what: &str, which: &str, value: String) {
    let name = match (which, what) {
        ("limit", "requests") => "x-ratelimit-limit-requests",
        ("limit", _) => "x-ratelimit-limit-tokens",
        ("remaining", "requests") => "x-ratelimit-remaining-requests",
        ("remaining", _) => "x-ratelimit-remaining-tokens",
        (_, "requests") => "x-ratelimit-reset-requests",
        _ => "x-ratelimit-reset-tokens",
    };
    headers.insert(name, value.parse().expect("digits and letters are a header's value"));
}

/// Returns a time as the API writes it: `120ms`, `1.5s`, `6m0s`.
fn go_duration(span: Duration) -> String {
    let (minutes, seconds) = (span.as_secs() / 60, span.as_secs_f64() % 60.0);
    if minutes > 0 {
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let hours = if hours > 0 { format!("{hours}h") } else { String::new() };
        return format!("{hours}{minutes}m{}s", (seconds * 1e3).round() / 1e3);
    }
    if seconds < 1.0 {
        // Never 0 for a time that is not over.
        return format!("{}ms", (seconds * 1e3).ceil());
    }
    format!("{}s", (seconds * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_does() {
        for (ms, expected) in
            [(0.0, "0ms"), (0.2, "1ms"), (120.0, "120ms"), (1500.0, "1.5s"), (59_000.0, "59s"), (360_000.0, "6m0s")]
        {
            assert_eq!(go_duration(Duration::from_secs_f64(ms / 1e3)), expected);
        }
        assert_eq!(go_duration(Duration::from_millis(3_723_500)), "1h2m3.5s");
    }
}
