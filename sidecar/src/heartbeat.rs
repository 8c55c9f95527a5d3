//! Nodes and loads through the store: tells what this sidecar knows, and hears what others know.

use std::{sync::Arc, time::Duration};

use affinity::NodeId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    api, directory::Directory, lasting::Lasting, registry::Registry, sessions::Carriers, store::StoreError,
};

/// How often, unless the store says that there is news.
const EVERY: Duration = Duration::from_secs(1);

/// Registers the node `beside` this sidecar once it answers, and keeps the registry up to date.
pub(crate) fn start(
    directory: &Arc<Directory>,
    registry: &Arc<Registry>,
    carriers: &Carriers,
    beside: Option<NodeId>,
) {
    if let Some(id) = beside {
        let (directory, registry) = (Arc::clone(directory), Arc::clone(registry));
        let carriers = carriers.clone();
        tokio::spawn(async move { register(&directory, &registry, &carriers, &id).await });
    }
    let (directory, registry) = (Arc::clone(directory), Arc::clone(registry));
    tokio::spawn(async move { follow(&directory, &registry).await });
}

async fn register(directory: &Directory, registry: &Registry, carriers: &Carriers, id: &NodeId) {
    let mut membership = registry.membership();
    let fault = Lasting::new("registering this node in the store");
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = membership.changed() => {}
        }
        if let Some(registration) = registry.registration(id, carriers.report(id)) {
            match directory.store().register(&registration).await {
                Ok(()) => fault.works(),
                Err(error) => fault.failed(error),
            }
        }
    }
}

async fn follow(directory: &Directory, registry: &Registry) {
    let mut news = directory.node_news();
    let (reading, needs) = (Lasting::new("reading the nodes from the store"), Lasting::new("the store"));
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = news.changed() => {}
        }
        let own = directory.loads();
        match directory.store().roster(&own).await {
            Ok(roster) => {
                reading.works();
                registry.take_in(roster, own);
            }
            // What is known stays: who cannot be asked about is not gone.
            Err(error) => {
                reading.failed(&error);
                // Whatever is refused shows here; one that cannot be reached is said already.
                if let StoreError::Unreachable(_) = error {
                    continue;
                }
            }
        }
        match directory.store().ping().await {
            Ok(()) => {
                needs.works();
                api::store_works();
            }
            Err(error) => needs.failed(error),
        }
    }
}
