//! How the programs reach each other over gRPC: addresses, tokens, limits.
//!
//! Servers listen on loopback unless told otherwise; off loopback a shared token is required (`TRACE_TOKEN` or a file).
//! The token is never printed: not in errors, logs or `Debug`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::error::{Error, Result};

/// Sent on idle connections, so that a dead peer is noticed.
const KEEPALIVE: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const METADATA: &str = "authorization";

/// A secret shared by all programs of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Returns the token of the environment's value or of a file; none where neither is given.
    ///
    /// # Errors
    /// Both are given, the file cannot be read, or the token is empty or not printable ASCII.
    pub fn load(value: Option<&str>, file: Option<&Path>) -> Result<Option<Token>> {
        let text = match (value, file) {
            (Some(_), Some(file)) => {
                let problem = format!("both TRACE_TOKEN and --token-file {} are given; keep one", file.display());
                return Err(Error::Config(problem));
            }
            (Some(value), None) => value.to_owned(),
            (None, Some(file)) => std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?,
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Error::Config("the token is empty or holds other than printable ASCII characters".into()));
        }
        Ok(Some(Token(text.to_owned())))
    }

    fn metadata(&self) -> MetadataValue<Ascii> {
        format!("Bearer {}", self.0).parse().expect("a token is printable ASCII")
    }
}

/// Checks that a server may listen at this address: loopback, or with a token.
///
/// # Errors
/// Another address without a token.
pub fn check_listen(address: &SocketAddr, token: Option<&Token>) -> Result<()> {
    if address.ip().is_loopback() || token.is_some() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{address} can be reached from other machines and needs a token: set TRACE_TOKEN or --token-file to the same \
         secret on every machine, or listen on 127.0.0.1"
    )))
}

/// The client's side of the token: adds it to every call.
#[derive(Debug, Clone)]
pub struct SendToken(pub Option<Token>);

impl Interceptor for SendToken {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(METADATA, token.metadata());
        }
        Ok(request)
    }
}

/// The server's side of the token: refuses calls without it.
#[derive(Debug, Clone)]
pub struct RequireToken(pub Option<Token>);

impl Interceptor for RequireToken {
    fn call(&mut self, request: Request<()>) -> std::result::Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let given = request.metadata().get(METADATA).map(|value| value.as_bytes().to_vec());
        let wanted = token.metadata();
        match given {
            // Hashes compare in constant time.
            Some(given) if blake3::hash(&given) == blake3::hash(wanted.as_bytes()) => Ok(request),
            Some(_) => Err(Status::unauthenticated("the token is not this cluster's; check TRACE_TOKEN")),
            None => Err(Status::unauthenticated("this server wants a token; set TRACE_TOKEN or --token-file")),
        }
    }
}

/// Returns a lazily connected channel to `http://host:port`.
///
/// # Errors
/// The address is not a URL.
pub fn channel(url: &str) -> Result<Channel> {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(with_scheme)
        .map_err(|_| Error::Config(format!("{url:?} is not an address; expected http://host:port")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_lazy())
}

/// Returns a server with this project's limits; it serves [`incoming`] connections.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder().http2_keepalive_interval(Some(KEEPALIVE))
}

/// Returns the connections that come to a listener. Small answers leave at once: a server that is given connections sets no
/// option of theirs, and without this one an answer waits up to 40 ms for the acknowledgement of the one before.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_prints_itself() {
        let token = Token::load(Some(" secret \n"), None).unwrap().unwrap();
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert!(!format!("{:?}", SendToken(Some(token))).contains("secret"));
    }

    #[test]
    fn off_loopback_a_token_is_required() {
        let token = Token::load(Some("secret"), None).unwrap();
        check_listen(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        check_listen(&"0.0.0.0:7400".parse().unwrap(), token.as_ref()).unwrap();
        let error = check_listen(&"0.0.0.0:7400".parse().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("TRACE_TOKEN"), "{error}");
    }

    #[test]
    fn a_server_takes_calls_with_its_token_only() {
        let token = Token::load(Some("secret"), None).unwrap();
        let other = Token::load(Some("secres"), None).unwrap();
        let mut server = RequireToken(token.clone());
        let call = |token: Option<Token>| SendToken(token).call(Request::new(())).unwrap();
        server.call(call(token)).unwrap();
        assert!(server.call(call(other)).is_err());
        assert!(server.call(call(None)).is_err());
        RequireToken(None).call(call(None)).unwrap();
    }

    #[tokio::test]
    async fn answers_do_not_wait_for_acknowledgements() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = tokio::net::TcpStream::connect(address).await.unwrap();
        let accepted = tokio_stream::StreamExt::next(&mut incoming(listener)).await.unwrap().unwrap();
        assert!(accepted.nodelay().unwrap());
    }
}
