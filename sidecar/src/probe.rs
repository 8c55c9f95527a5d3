//! Asks each node again and again whether it is well.

use std::{sync::Arc, time::Instant};

use affinity::NodeState;
use axum::body::Bytes;
use hyper::Request;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    cli::{Listen, Probe},
    client,
    metrics::Metrics,
    node_spec::NodeSpec,
    registry::{Probed, Registry},
};

/// Starts probing every node of the registry.
pub(crate) fn start(registry: &Arc<Registry>, options: &Probe, metrics: &Arc<Metrics>) {
    for spec in registry.specs() {
        let (registry, options, metrics) = (Arc::clone(registry), options.clone(), Arc::clone(metrics));
        tokio::spawn(async move {
            let mut ticks = interval(options.interval());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let probed = probe(&spec, &options).await;
                metrics.probed(&spec.id, &probed);
                registry.report(&spec.id, probed);
            }
        });
    }
}

/// One probe. The name is resolved each time: a container may come back with another address.
async fn probe(spec: &NodeSpec, options: &Probe) -> Probed {
    let patience = options.timeout();
    let attempt = async {
        let node = spec
            .resolve(NodeState::Active)
            .await
            .map_err(|error| format!("its address cannot be found: {error}"))?;
        let started = Instant::now();
        let request = Request::get(&options.probe_path);
        let answer = client::send(&Listen::Tcp(node.http), request, Bytes::new()).await;
        let status = answer.map_err(|error| error.to_string())?.status();
        if status.is_server_error() || status.is_client_error() {
            return Err(format!("{} answers {status}", options.probe_path));
        }
        Ok((node, started.elapsed()))
    };
    timeout(patience, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", patience.as_millis())))
}
