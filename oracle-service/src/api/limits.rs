//! What a server says about its limits: `x-ratelimit-*`, `Retry-After` and `retry-after-ms`, read from headers, pure.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// A limit and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Told {
    /// Per minute.
    pub(crate) limit: f64,
    pub(crate) remaining: f64,
    /// Until it is whole again.
    pub(crate) reset: Option<Duration>,
}

/// Everything heard with one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Heard {
    pub(crate) requests: Option<Told>,
    pub(crate) tokens: Option<Told>,
    pub(crate) retry_after: Option<Duration>,
}

/// Longest time a server may name: what is longer is taken for a mistake, and asked again then.
const LONGEST: Duration = Duration::from_secs(3600);

impl Heard {
    /// Reads an answer's headers; whatever is not understood is left out.
    pub(crate) fn of(headers: &HeaderMap, now: SystemTime) -> Heard {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let told = |kind: &str| {
            let number = |what: &str| {
                let value: f64 = text(&format!("x-ratelimit-{what}-{kind}"))?.parse().ok()?;
                (value.is_finite() && value >= 0.0).then_some(value)
            };
            let reset = text(&format!("x-ratelimit-reset-{kind}")).and_then(duration);
            Some(Told { limit: number("limit")?, remaining: number("remaining")?, reset })
        };
        let millis = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()).map(|ms| ms / 1000.0);
        let seconds = || text("retry-after").and_then(|value| value.parse::<f64>().ok());
        let date = || {
            let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
            Some(date.duration_since(server_time(text("date"), now)).unwrap_or_default())
        };
        let retry_after = millis.or_else(seconds).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Heard {
            requests: told("requests"),
            tokens: told("tokens"),
            retry_after: retry_after.or_else(date).map(|wait| wait.min(LONGEST)),
        }
    }
}

/// Returns the server's own time where it tells it: its clock need not be ours.
fn server_time(date: Option<&str>, now: SystemTime) -> SystemTime {
    date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now)
}

/// Reads a duration as these headers write it: `1s`, `6m0s`, `20ms`, `1h2m3.5s`, or bare seconds.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += value
            * match &rest[..letters] {
                "d" => 86400.0,
                "h" => 3600.0,
                "m" => 60.0,
                "s" | "" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(pairs: &[(&'static str, &str)]) -> Heard {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        Heard::of(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770))
    }

    #[test]
    fn limits_are_read_as_servers_write_them() {
        let found = heard(&[
            ("x-ratelimit-limit-requests", "600"),
            ("x-ratelimit-remaining-requests", "599"),
            ("x-ratelimit-reset-requests", "100ms"),
            ("x-ratelimit-limit-tokens", "40000"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        let (requests, tokens) = (found.requests.unwrap(), found.tokens.unwrap());
        assert_eq!((requests.limit, requests.remaining), (600.0, 599.0));
        assert_eq!(requests.reset, Some(Duration::from_millis(100)));
        assert_eq!((tokens.remaining, tokens.reset), (0.0, Some(Duration::from_secs(360))));
        assert_eq!(duration("1h2m3.5s"), Some(Duration::from_secs_f64(3723.5)));
        for wrong in ["", "s", "1x", "1..2s", "-1s", "1e400s", "٣s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_time_to_wait_is_seconds_milliseconds_or_a_date() {
        assert_eq!(heard(&[("retry-after", "7")]).retry_after, Some(Duration::from_secs(7)));
        let both = heard(&[("retry-after", "1"), ("retry-after-ms", "250")]);
        assert_eq!(both.retry_after, Some(Duration::from_millis(250)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(heard(&[("retry-after", date)]).retry_after, Some(Duration::from_secs(7)));
        // By the server's clock, which may be an hour off.
        let skewed = heard(&[("retry-after", date), ("date", "Sun, 06 Nov 1994 08:49:35 GMT")]);
        assert_eq!(skewed.retry_after, Some(Duration::from_secs(2)));
        assert_eq!(heard(&[("retry-after", "99999999")]).retry_after, Some(LONGEST));
        for wrong in ["-3", "NaN", "soon"] {
            assert_eq!(heard(&[("retry-after", wrong)]).retry_after, None, "{wrong}");
        }
    }

    #[test]
    fn half_a_limit_is_none() {
        assert_eq!(heard(&[("x-ratelimit-limit-requests", "600")]).requests, None);
        let odd = [("x-ratelimit-limit-tokens", "-1"), ("x-ratelimit-remaining-tokens", "5")];
        assert_eq!(heard(&odd).tokens, None);
    }
}
