//! Nodes that fail, freeze, answer wrongly, and come back.

use rustix::process::Signal;

use super::*;

const ACTIVE: NodeState = NodeState::Active;
const DOWN: NodeState = NodeState::Down;

/// Waits until a node is in a state; returns what is wrong with it.
async fn problem_when(sidecar: &Sidecar, id: &str, state: &str) -> Result<String> {
    let started = Instant::now();
    loop {
        let report: serde_json::Value = serde_json::from_slice(&sidecar.get("/v1/nodes").await?.body)?;
        let nodes = report["nodes"].as_array().context("no nodes")?;
        let node = nodes.iter().find(|node| node["id"] == id).context("no such node")?;
        if node["state"] == state {
            return Ok(node["problem"].as_str().unwrap_or_default().to_owned());
        }
        ensure!(started.elapsed() < PATIENCE, "{id} does not become {state}: {report}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_state_changes_after_that_many_probes_in_a_row() -> Result<()> {
    // Twice is not three times, and once is not twice.
    let statuses = [200, 500, 500, 200, 500, 200, 500, 500, 500, 200, 503, 200, 503, 200, 200];
    let (down_at, up_at) = (9, 15);
    let node = FakeNode::start(&statuses).await?;
    let sidecar = Sidecar::start(&[node.spec("a")], &["--down-after", "3", "--up-after", "2"]).await?;
    for (state, probes) in [(ACTIVE, 1), (DOWN, down_at), (ACTIVE, up_at)] {
        sidecar.wait_for(&[state]).await?;
        ensure!(node.answered() >= probes, "{state} after {} probes, not {probes}", node.answered());
    }
    let log = sidecar.process.printed();
    ensure!(log.matches("is down: /web/health answers 500").count() == 1, "{log}");
    ensure!(log.matches("is active").count() == 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn below_400_is_healthy() -> Result<()> {
    let mut nodes = Vec::new();
    for status in [200, 204, 303, 404, 429, 500, 503] {
        nodes.push((status, FakeNode::start(&[status]).await?));
    }
    let specs: Vec<_> = nodes.iter().map(|(status, node)| node.spec(&status.to_string())).collect();
    let mut sidecar = Sidecar::start(&specs, &["--probe-path", "/web/login"]).await?;
    sidecar.wait_until_ready().await?;
    for (status, _) in nodes {
        if status < 400 {
            problem_when(&sidecar, &status.to_string(), "active").await?;
        } else {
            let problem = problem_when(&sidecar, &status.to_string(), "down").await?;
            ensure!(problem.contains(&format!("/web/login answers {status}")), "{problem}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn another_server_at_its_address_is_not_taken_for_odoo() -> Result<()> {
    let page = FakeNode::saying(&[200], "<html>It works!</html>").await?;
    let other = FakeNode::saying(&[200], r#"{"status": "ok"}"#).await?;
    let nodes = [page.spec("page"), other.spec("other")];
    let sidecar = Sidecar::start(&nodes, &[]).await?;
    for id in ["page", "other"] {
        let problem = problem_when(&sidecar, id, "down").await?;
        ensure!(problem.contains("not as Odoo does") && problem.contains("--probe-path"), "{problem}");
    }
    // What else an operator has probed may answer in its own way.
    let sidecar = Sidecar::start(&nodes, &["--probe-path", "/my/health"]).await?;
    sidecar.wait_for(&[ACTIVE, ACTIVE]).await.map(drop)
}

/// Starts a stand-in for Odoo.
async fn start_odoo(address: SocketAddr, folder: &Path) -> Result<Process> {
    let mut command = Command::new(program("odoo-standin"));
    command.args(["--id", "odoo", "--http", &address.to_string(), "--gevent", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(folder.join("data")).arg("--shared-dir").arg(folder.join("shared"));
    let mut process = Process::start("odoo-standin", command, &folder.join("odoo.log"))?;
    process.wait(PATIENCE, async || browser::get(address, "/web/health").await.ok()).await?;
    Ok(process)
}

#[tokio::test]
async fn nodes_that_end_or_freeze_are_down_until_they_are_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = ([127, 0, 0, 1], free_port()?).into();
    let odoo = start_odoo(address, folder.path()).await?;
    // By its name, as in a compose file.
    let spec = format!("odoo=localhost:{}", address.port());
    let sidecar = Sidecar::start(&[spec], &["--probe-timeout-ms", "400"]).await?;
    sidecar.wait_for(&[ACTIVE]).await?;

    odoo.kill();
    sidecar.wait_for(&[DOWN]).await?;
    let problem = problem_when(&sidecar, "odoo", "down").await?;
    ensure!(problem.contains("refused"), "{problem}");
    let odoo = start_odoo(address, folder.path()).await?;
    sidecar.wait_for(&[ACTIVE]).await?;
    ensure!(problem_when(&sidecar, "odoo", "active").await?.is_empty());

    odoo.signal(Signal::STOP);
    sidecar.wait_for(&[DOWN]).await?;
    let problem = problem_when(&sidecar, "odoo", "down").await?;
    ensure!(problem.contains("no answer within 400 ms"), "{problem}");
    odoo.signal(Signal::CONT);
    sidecar.wait_for(&[ACTIVE]).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_was_never_there_is_down() -> Result<()> {
    let nodes = [absent("a"), "b=no-such-host.invalid:8069".to_owned()];
    let sidecar = Sidecar::start(&nodes, &[]).await?;
    let problem = problem_when(&sidecar, "a", "down").await?;
    ensure!(problem.contains("refused"), "{problem}");
    let problem = problem_when(&sidecar, "b", "down").await?;
    ensure!(problem.contains("its address cannot be found"), "{problem}");
    Ok(())
}
