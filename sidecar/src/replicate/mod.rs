//! Directories of small files that all nodes are to have, such as the OpenID store of old Odoo versions: each
//! sidecar looks at its directories and at the store each second, and makes them alike.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use self::carrier::Carrier;
use crate::{cli::ReplicateSpec, metrics::Metrics, sessions::Sealer, store::Store};

mod carrier;
mod decide;
mod folder;
mod name;
#[cfg(test)]
mod tests;

pub(crate) use decide::Mode;

/// How often directories and the store are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Starts to replicate directories.
pub(crate) fn start(
    specs: &[ReplicateSpec],
    sealer: &Arc<Sealer>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) {
    for spec in specs {
        let mut carrier = Carrier::new(spec, Arc::clone(sealer), Arc::clone(store), Arc::clone(metrics));
        tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                carrier.round().await;
            }
        });
    }
}
