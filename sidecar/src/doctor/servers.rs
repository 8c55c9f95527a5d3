//! What the sidecar knows, and what the nodes themselves say.

use std::time::{Duration, SystemTime};

use affinity::{
    NodeState,
    wire::{LeaseHolder, NodeReport, NodesReply, StoreReport},
};
use axum::body::Bytes;
use hyper::{Request, Response, header};
use tokio::time::timeout;

use super::report::{Id, Report, Severity};
use crate::{
    asking::{AskError, Sidecar},
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
    pub(super) async fn ask(asked: &Asked, report: &mut Report) -> Self {
        let about = format!("the sidecar at {}", asked.sidecar);
        let answers = async {
            let sidecar = Sidecar::new(asked)?;
            let reply: NodesReply = sidecar.get("/v1/nodes").await?;
            Ok::<_, AskError>((reply, sidecar.check("/readyz").await))
        };
        match timeout(PATIENCE, answers).await {
            Ok(Ok((reply, ready))) => {
                examine_readiness(&about, reply.store, ready.err().map(|error| error.to_string()), report);
                examine_differences(&about, &reply.differences, report);
                let what =
                    format!("{about}: that it is ready, its {} nodes, and others' lists", reply.nodes.len());
                report.looked_at(what);
                Self { nodes: reply.nodes, cron: reply.cron }
            }
            Ok(Err(error)) => {
                let remedy = "start `mooring serve`, or name another with --sidecar";
                report.add(Severity::Error, Id::SidecarAbsent, about, error.to_string(), remedy);
                Self::absent(report)
            }
            Err(_) => {
                let problem = format!("it does not answer within {} s", PATIENCE.as_secs());
                let remedy = "restart it; its log says more";
                report.add(Severity::Error, Id::SidecarAbsent, about, problem, remedy);
                Self::absent(report)
            }
        }
    }

    fn absent(report: &mut Report) -> Self {
        report.left_out("the nodes, and whatever is compared with them", "the sidecar did not answer");
        Self::default()
    }

    /// Examines every node; `probe_path` is what the sidecar asks them for.
    pub(super) async fn examine(&self, probe_path: &str, report: &mut Report) {
        if let [only] = &self.nodes[..] {
            let problem = "it is the only one: nobody goes on when it dies";
            report.add(Severity::Warning, Id::OneNode, &only.id, problem, "a second --node");
        }
        let some_carry = self.nodes.iter().any(|node| node.carries);
        for node in &self.nodes {
            match node.state {
                NodeState::Down => {
                    let problem = node.problem.clone().unwrap_or_else(|| "it is down".into());
                    let remedy = format!("is Odoo running, and is {} open from here?", node.http);
                    report.add(Severity::Error, Id::NodeDown, &node.id, problem, remedy);
                }
                NodeState::Draining => {
                    let remedy = format!("mooring undrain {}", node.id);
                    let problem = "no new session goes there";
                    report.add(Severity::Note, Id::NodeDrained, &node.id, problem, remedy);
                }
                NodeState::Active => {}
            }
            // Of one that is down this was the reason.
            if let Some(doubt) = node.problem.as_ref().filter(|_| node.state != NodeState::Down) {
                let remedy = "mend it before that server or the sidecar is started anew";
                report.add(Severity::Warning, Id::NodeInDoubt, &node.id, doubt, remedy);
            }
            if node.gevent.is_none() {
                let problem = "its websockets go to its HTTP port, where Odoo with workers answers none";
                let remedy = "in --node: ,gevent=HOST:8072";
                report.add(Severity::Warning, Id::NoGevent, &node.id, problem, remedy);
            }
            if !node.carries {
                let severity = if some_carry { Severity::Error } else { Severity::Warning };
                let problem = "its sessions are not carried: when it dies its people are logged out";
                let remedy = "--sessions at the sidecar beside it";
                report.add(severity, Id::NotCarried, &node.id, problem, remedy);
            }
            examine_answer(node, probe_path, report).await;
        }
    }
}

/// What a sidecar says of itself. Where its store fails it is not ready for that reason.
fn examine_readiness(about: &str, store: Option<StoreReport>, unready: Option<String>, report: &mut Report) {
    if let Some(StoreReport { problem, remedy }) = store {
        let remedy = remedy.unwrap_or_else(|| "is it running, and can it be reached from there?".into());
        report.add(Severity::Error, Id::StoreFails, about, problem, remedy);
    } else if let Some(problem) = unready {
        let remedy = "its log says more; until then its filter goes on with what it knew";
        report.add(Severity::Warning, Id::SidecarNotReady, about, problem, remedy);
    }
}

/// Each line is one side of what may be one mistake, such as two names exchanged.
fn examine_differences(about: &str, differences: &[String], report: &mut Report) {
    if !differences.is_empty() {
        let problem = format!(
            "sidecars were told of different nodes: {}: people lose their sessions between them",
            differences.join("; ")
        );
        let remedy = "the same --node list at every sidecar: names, addresses and weights";
        report.add(Severity::Error, Id::ListsDiffer, about, problem, remedy);
    }
}

/// Asks a node itself: whether it is Odoo that answers, and what its clock says.
async fn examine_answer(node: &NodeReport, path: &str, report: &mut Report) {
    let what = format!("who answers at {}, and its clock", node.id);
    if node.state == NodeState::Down {
        return report.left_out(what, "it is down");
    }
    let answer = async {
        let mut addresses = tokio::net::lookup_host(&node.http).await.map_err(|error| error.to_string())?;
        let address = addresses.next().ok_or("it has no address")?;
        let answer = client::send(&Listen::Tcp(address), Request::get(path), Bytes::new()).await;
        answer.map_err(|error| error.to_string())
    };
    let answer = timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err("it does not answer in time".into()));
    let answer = match answer {
        Ok(answer) if answer.status().is_client_error() || answer.status().is_server_error() => {
            let why = format!("{path} is answered by {}; --probe-path as at the sidecar?", answer.status());
            return report.left_out(what, why);
        }
        Ok(answer) => answer,
        Err(error) => return report.left_out(what, error),
    };
    if is_odoo(path, &answer) {
        report.looked_at(format!("{}: that Odoo answers at {}{path}, and its clock", node.id, node.http));
    } else {
        let problem =
            format!("what answers at {} is not Odoo: its {path} is not what Odoo has there", node.http);
        let remedy = "the right address in --node; or --probe-path, if the sidecar asks for another";
        report.add(Severity::Error, Id::ForeignServer, &node.id, problem, remedy);
        return;
    }
    examine_clock(node, &answer, SystemTime::now(), report);
}

/// Whether Odoo answers like this: its health page says that it passes, its other pages begin a session.
fn is_odoo(path: &str, answer: &Response<Bytes>) -> bool {
    let page = path.split('?').next().unwrap_or_default();
    if page.ends_with("/health") {
        let health: Option<serde_json::Value> = serde_json::from_slice(answer.body()).ok();
        return health.is_some_and(|health| health.get("status").is_some_and(|status| status == "pass"));
    }
    let mut cookies = answer.headers().get_all(header::SET_COOKIE).iter();
    cookies.any(|cookie| cookie.as_bytes().starts_with(b"session_id="))
}

/// Compares a node's clock, as its answer tells it, with this machine's.
fn examine_clock(node: &NodeReport, answer: &Response<Bytes>, ours: SystemTime, report: &mut Report) {
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else { return };
    // It is told in whole seconds.
    let apart = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).unwrap_or_default();
    if apart > SKEW {
        let problem = format!("its clock and this machine's are {} s apart", apart.as_secs());
        let remedy = "NTP on every host: sessions end too soon or too late, and two-factor codes fail";
        report.add(Severity::Warning, Id::ClockSkew, &node.id, problem, remedy);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::doctor::odoo_conf::tests::names;

    /// Three nodes whose sessions are carried, as a sidecar tells of them.
    pub(in crate::doctor) fn servers() -> Servers {
        let node = |n: u16| {
            serde_json::json!({
                "id": format!("odoo-{n}"), "http": format!("10.0.0.{n}:8069"),
                "gevent": format!("10.0.0.{n}:8072"), "weight": 1, "state": "active", "sessions": 0,
                "probe_ms": 1.0, "since_seconds": 1, "problem": null, "carries": true,
            })
        };
        let reply = serde_json::json!({"nodes": [node(1), node(2), node(3)]});
        let NodesReply { nodes, cron, .. } = serde_json::from_value(reply).unwrap();
        Servers { nodes, cron }
    }

    #[test]
    fn a_store_that_fails_is_one_finding_with_what_to_do() {
        let refused =
            || StoreReport { problem: "it refuses EVALSHA".into(), remedy: Some("ACL SETUSER".into()) };
        let without = || StoreReport { problem: "it cannot be reached".into(), remedy: None };
        let unready = || Some("something".to_owned());
        for (store, unready, expected) in [
            (None, None, vec![]),
            (None, unready(), vec![("sidecar-not-ready", "its log")]),
            (Some(refused()), unready(), vec![("store-fails", "ACL SETUSER")]),
            (Some(refused()), None, vec![("store-fails", "ACL SETUSER")]),
            (Some(without()), unready(), vec![("store-fails", "is it running")]),
        ] {
            let mut report = Report::default();
            examine_readiness("a sidecar", store, unready, &mut report);
            let found: Vec<_> = report.findings.iter().map(|it| (it.id.name(), it.remedy.clone())).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for ((name, remedy), (expected, part)) in found.iter().zip(expected) {
                assert!(name == expected && remedy.starts_with(part), "{name} {remedy}");
            }
        }
    }

    #[tokio::test]
    async fn what_the_sidecar_says_of_lists_and_nodes_is_told_once() {
        let mut report = Report::default();
        let crossed = ["odoo-1 is 10.0.0.1 here", "odoo-2 is 10.0.0.2 here"].map(str::to_owned);
        examine_differences("a sidecar", &[], &mut report);
        examine_differences("a sidecar", &crossed, &mut report);
        assert_eq!(names(&report), ["lists-differ"]);
        assert!(crossed.iter().all(|line| report.findings[0].problem.contains(line)));

        let mut servers = servers();
        for (node, state) in servers.nodes.iter_mut().zip([NodeState::Draining, NodeState::Down]) {
            (node.state, node.problem) = (state, Some("its address cannot be found".into()));
        }
        // Nobody answers there, and nobody is asked.
        servers.nodes.truncate(2);
        for node in &mut servers.nodes {
            node.http = "127.0.0.1:1".into();
        }
        let mut report = Report::default();
        servers.examine("/web/health", &mut report).await;
        assert_eq!(names(&report), ["node-drained", "node-in-doubt", "node-down"]);
    }

    #[test]
    fn odoo_is_known_by_what_only_odoo_answers() {
        let answer = |cookie: Option<&str>, body: &str| {
            let mut response = Response::builder();
            if let Some(cookie) = cookie {
                response = response.header(header::SET_COOKIE, cookie);
            }
            response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
        };
        let health = "/web/health";
        for (path, cookie, body, expected) in [
            (health, None, r#"{"status": "pass"}"#, true),
            ("/web/health?db_server_status=1", None, r#"{"status":"pass","db_server_status":true}"#, true),
            (health, None, r#"{"status": "fail"}"#, false),
            (health, None, "<html>It works!</html>", false),
            (health, None, "pass", false),
            (health, None, "", false),
            (health, Some("session_id=x; Path=/"), "[]", false),
            ("/web/login", Some("session_id=x; Path=/"), "<html>", true),
            ("/web/login", Some("PHPSESSID=x"), "<html>", false),
            ("/", None, r#"{"status": "pass"}"#, false),
        ] {
            assert_eq!(is_odoo(path, &answer(cookie, body)), expected, "{path} {cookie:?} {body}");
        }
    }
}
