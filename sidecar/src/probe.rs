//! Asks each node again and again whether it is well.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use affinity::{Node, NodeId, NodeState};
use axum::body::Bytes;
use hyper::{Request, StatusCode};
use serde_json::Value;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    cli::{Listen, Probe},
    client,
    files::Root,
    metrics::Metrics,
    node_spec::NodeSpec,
    registry::{Found, Probed, Registry},
    sessions,
};

/// Starts probing every node of the registry.
pub(crate) fn start(
    registry: &Arc<Registry>,
    options: &Probe,
    sessions: &[(NodeId, Root)],
    metrics: &Arc<Metrics>,
) {
    for spec in registry.specs() {
        let disk = sessions.iter().find(|(node, _)| *node == spec.id).map(|(_, root)| root.clone());
        let mut disk = disk.map(|directory| DiskProbe { directory, running: None });
        let mut addresses = Addresses { spec: spec.clone(), last: None, running: None };
        let (registry, options, metrics) = (Arc::clone(registry), options.clone(), Arc::clone(metrics));
        tokio::spawn(async move {
            let mut ticks = interval(options.interval());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let mut probed = probe(&mut addresses, &options).await;
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

/// One probe.
async fn probe(addresses: &mut Addresses, options: &Probe) -> Probed {
    let patience = options.timeout();
    let (node, doubt) = addresses.find(patience).await?;
    let attempt = async {
        let started = Instant::now();
        let request = Request::get(&options.probe_path);
        let answer = client::send(&Listen::Tcp(node.http), request, Bytes::new()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        is_well(&options.probe_path, answer.status(), answer.body())?;
        Ok(started.elapsed())
    };
    let answered = timeout(patience, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", patience.as_millis())));
    match (answered, doubt) {
        (Ok(latency), doubt) => {
            addresses.last = Some(node.clone());
            Ok(Found { node, latency, doubt })
        }
        (Err(problem), Some(doubt)) => Err(format!("{problem}; {doubt}")),
        (Err(problem), None) => Err(problem),
    }
}

/// Where Odoo 15 and later says that it is well, and how.
const ODOO_HEALTH: &str = "/web/health";

/// Whether an answer says that Odoo is well. Another server may be at the address by now, and answer
/// whatever it is asked.
fn is_well(path: &str, status: StatusCode, body: &[u8]) -> Result<(), String> {
    if status.is_server_error() || status.is_client_error() {
        return Err(format!("{path} answers {status}"));
    }
    let says_so = || {
        serde_json::from_slice::<Value>(body)
            .is_ok_and(|health| health.get("status").is_some_and(|it| it == "pass"))
    };
    if path.split('?').next() == Some(ODOO_HEALTH) && !says_so() {
        return Err(format!(
            "{path} answers {status}, but not as Odoo does: another server may have its address (if a module \
             answers there: --probe-path /web/login)"
        ));
    }
    Ok(())
}

/// Where a node is. Its names are looked up for each probe, for a container may come back with another address.
/// A name server that fails says nothing of the node, which is then probed where it last answered.
struct Addresses {
    spec: NodeSpec,
    /// Where it last answered, or else was first found.
    last: Option<Node>,
    /// A look-up that did not come back: name servers may be silent, and one thread is enough to wait for them.
    running: Option<JoinHandle<io::Result<Node>>>,
}

impl Addresses {
    /// Its addresses, and why they may be old ones.
    async fn find(&mut self, patience: Duration) -> Result<(Node, Option<String>), String> {
        let spec = self.spec.clone();
        let mut running = self
            .running
            .take()
            .unwrap_or_else(|| tokio::spawn(async move { spec.resolve(NodeState::Active).await }));
        // Who knows where else to look does not wait for long: the look-up goes on meanwhile.
        let patience = if self.last.is_some() { patience / 4 } else { patience };
        let found = match timeout(patience, &mut running).await {
            Ok(Ok(found)) => found.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                self.running = Some(running);
                Err(format!("no answer within {} ms", patience.as_millis()))
            }
        };
        match (found, &self.last) {
            (Ok(node), last) => {
                if last.is_none() {
                    self.last = Some(node.clone());
                }
                Ok((node, None))
            }
            (Err(error), Some(last)) => Ok((
                last.clone(),
                Some(format!("its address cannot be found: {error}; it is sought at its last one")),
            )),
            (Err(error), None) => Err(format!("its address cannot be found: {error}")),
        }
    }
}

/// Asks whether Odoo can write its sessions: with a full disk it answers probes, and nobody else.
struct DiskProbe {
    directory: Root,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odoo_says_that_it_is_well_in_its_own_words() {
        let is_well = |path: &str, status: u16, body: &str| {
            is_well(path, StatusCode::from_u16(status).unwrap(), body.as_bytes()).is_ok()
        };
        for body in [r#"{"status": "pass"}"#, r#"{"status":"pass","db_server_status":true}"#] {
            assert!(is_well("/web/health", 200, body));
            assert!(is_well("/web/health?db_server_status=1", 200, body));
            assert!(!is_well("/web/health", 500, body));
        }
        for body in [
            "",
            "<html>It works!</html>",
            "OK",
            r#"{"status": "ok"}"#,
            r#"{"status": "fail"}"#,
            r#"["pass"]"#,
        ] {
            assert!(!is_well("/web/health", 200, body), "{body}");
            assert!(!is_well("/web/health?x", 303, body), "{body}");
            assert!(is_well("/web/login", 200, body) && is_well("/web/login", 303, body), "{body}");
        }
        assert!(!is_well("/web/login", 404, ""));
    }

    #[tokio::test]
    async fn a_name_that_fails_leads_where_it_led() {
        let patience = Duration::from_secs(5);
        let spec: NodeSpec = "a=no-such-host.invalid:8069".parse().unwrap();
        let mut addresses = Addresses { spec, last: None, running: None };
        let lost = addresses.find(patience).await.unwrap_err();
        assert!(lost.starts_with("its address cannot be found"), "{lost}");
        let last = "a=10.0.0.1:8069".parse::<NodeSpec>().unwrap().literal().unwrap();
        addresses.last = Some(last.clone());
        let (node, doubt) = addresses.find(patience).await.unwrap();
        assert_eq!(node, last);
        assert!(doubt.unwrap().contains("it is sought at its last one"));
        // A name server that is silent is waited for by one look-up, and its answer is used when it comes.
        let late = Node { http: "10.0.0.2:8069".parse().unwrap(), ..last.clone() };
        let (tell, told) = tokio::sync::oneshot::channel::<Node>();
        addresses.running = Some(tokio::spawn(async move { told.await.map_err(io::Error::other) }));
        for _ in 0..2 {
            let (node, doubt) = addresses.find(Duration::from_millis(40)).await.unwrap();
            assert_eq!((node, doubt.is_some()), (last.clone(), true));
        }
        tell.send(late.clone()).unwrap();
        assert_eq!(addresses.find(patience).await, Ok((late, None)));
    }
}
