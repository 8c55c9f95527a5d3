//! What the sidecar knows, and what the nodes themselves say.

use std::time::{Duration, SystemTime};

use affinity::{
    NodeState,
    wire::{LeaseHolder, NodeReport, NodesReply},
};
use hyper::{Request, header};
use tokio::time::timeout;

use super::{Findings, Severity};
use crate::{
    asking::Sidecar,
    cli::{Asked, Listen},
    client,
};

/// How far apart two clocks may be.
const SKEW: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(3);

/// The nodes, as far as a sidecar answers.
#[derive(Default)]
pub(super) struct Servers {
    pub(super) nodes: Vec<NodeReport>,
    pub(super) cron: Option<LeaseHolder>,
}

impl Servers {
    /// Asks a sidecar; where none answers, that is found.
    pub(super) async fn ask(asked: &Asked, findings: &mut Findings) -> Self {
        let about = format!("the sidecar at {}", asked.sidecar);
        let answers = async {
            let sidecar = Sidecar::new(asked)?;
            let reply: NodesReply = sidecar.get("/v1/nodes").await?;
            Ok::<_, crate::asking::AskError>((reply, sidecar.check("/readyz").await))
        };
        match timeout(PATIENCE, answers).await {
            Ok(Ok((reply, ready))) => {
                if let Err(problem) = ready {
                    let remedy = "its log says more; until then its filter goes on with what it knew";
                    findings.add(Severity::Warning, "sidecar-not-ready", about, problem.to_string(), remedy);
                }
                Self { nodes: reply.nodes, cron: reply.cron }
            }
            Ok(Err(error)) => {
                let remedy = "start `mooring serve`, or name another with --sidecar";
                findings.add(Severity::Error, "sidecar-absent", about, error.to_string(), remedy);
                Self::default()
            }
            Err(_) => {
                let problem = format!("it does not answer within {} s", PATIENCE.as_secs());
                findings.add(
                    Severity::Error,
                    "sidecar-absent",
                    about,
                    problem,
                    "restart it; its log says more",
                );
                Self::default()
            }
        }
    }

    /// Examines every node.
    pub(super) async fn examine(&self, findings: &mut Findings) {
        if self.nodes.len() == 1 {
            let problem = "it is the only one: nobody goes on when it dies";
            findings.add(Severity::Warning, "one-node", about(&self.nodes[..]), problem, "a second --node");
        }
        let some_carry = self.nodes.iter().any(|node| node.carries);
        for node in &self.nodes {
            match node.state {
                NodeState::Down => {
                    let problem = node.problem.clone().unwrap_or_else(|| "it is down".into());
                    let remedy = format!("is Odoo running, and is {} open from here?", node.http);
                    findings.add(Severity::Error, "node-down", &node.id, problem, remedy);
                }
                NodeState::Draining => {
                    let remedy = format!("mooring undrain {}", node.id);
                    findings.add(
                        Severity::Note,
                        "node-drained",
                        &node.id,
                        "no new session goes there",
                        remedy,
                    );
                }
                NodeState::Active => {}
            }
            if node.gevent.is_none() {
                let remedy = "in --node: ,gevent=HOST:8072";
                findings.add(
                    Severity::Warning,
                    "no-gevent",
                    &node.id,
                    "its websockets go to its HTTP port",
                    remedy,
                );
            }
            if !node.carries {
                let severity = if some_carry { Severity::Error } else { Severity::Warning };
                let problem = "its sessions are not carried: when it dies its people are logged out";
                findings.add(
                    severity,
                    "not-carried",
                    &node.id,
                    problem,
                    "--sessions at the sidecar beside it",
                );
            }
            if node.state != NodeState::Down {
                examine_clock(node, findings).await;
            }
        }
    }
}

fn about(nodes: &[NodeReport]) -> String {
    nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join(", ")
}

/// Compares a node's clock, as its answers tell it, with this machine's.
async fn examine_clock(node: &NodeReport, findings: &mut Findings) {
    let date = async {
        let address = tokio::net::lookup_host(&node.http).await.ok()?.next()?;
        let answer =
            client::send(&Listen::Tcp(address), Request::get("/web/health"), Default::default()).await;
        let date = answer.ok()?.headers().get(header::DATE)?.to_str().ok()?.to_owned();
        httpdate::parse_http_date(&date).ok()
    };
    let Ok(Some(theirs)) = timeout(PATIENCE, date).await else { return };
    let ours = SystemTime::now();
    // It is told in whole seconds.
    let apart = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).unwrap_or_default();
    if apart > SKEW {
        let problem = format!("its clock and this machine's are {} s apart", apart.as_secs());
        let remedy = "NTP on every host: sessions end too soon or too late, and two-factor codes fail";
        findings.add(Severity::Warning, "clock-skew", &node.id, problem, remedy);
    }
}
