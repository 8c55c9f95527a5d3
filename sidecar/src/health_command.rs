//! `mooring health`: a health check for where there is no shell and no curl.

use crate::{
    asking::{AskError, Sidecar},
    cli::Health,
};

/// Asks whether the sidecar is alive, or ready. Says nothing if it is.
///
/// # Errors
/// If it is not, with what it says.
pub(crate) async fn run(options: Health) -> Result<(), AskError> {
    let path = if options.ready { "/readyz" } else { "/healthz" };
    Sidecar::new(&options.asked)?.check(path).await
}
