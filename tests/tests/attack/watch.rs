//! Whether the sidecar answers and calls everybody well, and what it and Envoy take, all the while.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use harness::{browser, stack::Stack};
use serde_json::Value;
use tokio::{task::JoinHandle, time::sleep};

use crate::footprint::Footprint;

const EVERY: Duration = Duration::from_millis(300);

/// What was seen.
#[derive(Default)]
pub struct Seen {
    pub looks: usize,
    /// What was not well, and how often.
    pub troubles: BTreeMap<String, usize>,
    /// The most that each took.
    pub envoy: Footprint,
    pub sidecar: Footprint,
}

/// Looks until it is told to end.
pub struct Watch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Seen>>,
}

impl Watch {
    pub fn start(stack: &Stack) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let until = Arc::clone(&stop);
        let (address, envoy) = (stack.sidecar_address, stack.envoy.process.id());
        let sidecar = stack.sidecar.as_ref().expect("a sidecar").id();
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            while !until.load(Ordering::Relaxed) {
                for trouble in troubles(address).await {
                    *seen.troubles.entry(trouble).or_default() += 1;
                }
                seen.looks += 1;
                seen.envoy = seen.envoy.most(Footprint::of(envoy)?);
                seen.sidecar = seen.sidecar.most(Footprint::of(sidecar)?);
                sleep(EVERY).await;
            }
            Ok(seen)
        });
        Self { stop, task }
    }

    pub async fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// What is not well.
pub async fn troubles(sidecar: SocketAddr) -> Vec<String> {
    let ready = browser::get(sidecar, "/readyz").await;
    let nodes = browser::get(sidecar, "/v1/nodes").await;
    let mut troubles = Vec::new();
    match ready {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => troubles.push(format!("/readyz answers {}", answer.text().trim())),
        Err(error) => troubles.push(format!("/readyz does not answer: {error:#}")),
    }
    match nodes.map(|answer| serde_json::from_slice::<Value>(&answer.body)) {
        Ok(Ok(nodes)) => {
            for node in nodes["nodes"].as_array().into_iter().flatten() {
                if node["state"] != "active" {
                    troubles.push(format!("{} is {}: {}", node["id"], node["state"], node["problem"]));
                }
            }
        }
        Ok(Err(error)) => troubles.push(format!("/v1/nodes answers no JSON: {error}")),
        Err(error) => troubles.push(format!("/v1/nodes does not answer: {error:#}")),
    }
    troubles
}
