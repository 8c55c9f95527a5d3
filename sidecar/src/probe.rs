//! Asks each node again and again whether it is well.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use affinity::NodeState;
use axum::body::Bytes;
use hyper::Request;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    cli::{Listen, Probe, SessionsSpec},
    client,
    metrics::Metrics,
    node_spec::NodeSpec,
    registry::{Probed, Registry},
    sessions,
};

/// Starts probing every node of the registry.
pub(crate) fn start(
    registry: &Arc<Registry>,
    options: &Probe,
    sessions: &[SessionsSpec],
    metrics: &Arc<Metrics>,
) {
    for spec in registry.specs() {
        let disk = sessions.iter().find(|of| of.node == spec.id).map(|of| of.path.clone());
        let mut disk = disk.map(|directory| DiskProbe { directory, running: None });
        let (registry, options, metrics) = (Arc::clone(registry), options.clone(), Arc::clone(metrics));
        tokio::spawn(async move {
            let mut ticks = interval(options.interval());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let mut probed = probe(&spec, &options).await;
                if let (Ok(_), Some(disk)) = (&probed, &mut disk)
                    && let Err(problem) = disk.probe(options.timeout()).await
                {
                    probed = Err(format!("its sessions cannot be written: {problem}"));
                }
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

/// Asks whether Odoo can write its sessions: with a full disk it answers probes, and nobody else.
struct DiskProbe {
    directory: PathBuf,
    /// One that did not come back: a disk may hang, and one thread is enough to wait for it.
    running: Option<JoinHandle<io::Result<()>>>,
}

impl DiskProbe {
    async fn probe(&mut self, patience: Duration) -> Result<(), String> {
        let directory = self.directory.clone();
        let mut running =
            self.running.take().unwrap_or_else(|| spawn_blocking(move || sessions::has_room(&directory)));
        match timeout(patience, &mut running).await {
            Ok(Ok(written)) => written.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                self.running = Some(running);
                Err(format!("the disk does not answer within {} ms", patience.as_millis()))
            }
        }
    }
}
