//! Signals to a command that a person or a batch system started: SIGTERM and Ctrl-C tell it to stop at its next step, pack
//! or batch, with everything kept that is done; a second one ends the process at once.

use std::sync::mpsc::channel;

use crate::control::{Stop, StopFlag};
use crate::error::{Error, Result};

/// Exit code of a command that was told to stop and did (EX_TEMPFAIL: to be tried again later). Another one than that of a
/// process that a signal ended.
pub const STOPPED: u8 = 75;

/// Has signals set a flag from now on.
///
/// # Errors
/// Signals cannot be received.
pub fn stop_on(flag: StopFlag) -> Result<()> {
    let refused = |error: std::io::Error| Error::Config(format!("signals cannot be received: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
    let (ready, wait) = channel();
    let listen = move || {
        runtime.block_on(async {
            let token = shared::shutdown::on_signals(false);
            let _ = ready.send(token.as_ref().map(drop).map_err(std::io::Error::kind));
            let Ok(token) = token else { return };
            token.cancelled().await;
            tracing::info!("told to stop: at the next step, pack or batch; a second signal ends it at once");
            flag.set(Stop::Paused);
            // For the second signal.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(refused)?;
    wait.recv().unwrap_or(Err(std::io::ErrorKind::Other)).map_err(|kind| refused(kind.into()))
}
