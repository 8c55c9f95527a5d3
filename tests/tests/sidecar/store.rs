//! A Redis that refuses what is needed, or is gone: what is said of it, and how often.

use harness::redis_servers::Server;

use super::*;

/// What docs/redis.md gives a user, without some of it.
async fn allow(redis: &Server, without: &[&str]) -> Result<()> {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/redis.md"))?;
    let line = docs.lines().find(|line| line.starts_with("user sidecar on ")).context("no ACL line")?;
    let rights = line.split(' ').skip(2).filter(|word| !without.contains(word)).collect::<Vec<_>>();
    redis.run::<()>(&format!("ACL SETUSER sidecar reset {}", rights.join(" "))).await
}

/// The lines of a log that say that something is wrong.
fn complaints(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect()
}

#[tokio::test]
async fn what_redis_refuses_is_named_and_a_drain_that_does_nothing_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    allow(&redis, &["+time"]).await?;
    let password = folder.path().join("password");
    std::fs::write(&password, "PASSWORD\n")?;
    let password = password.to_str().context("no path")?;
    let store = format!("redis://{}/0", redis.address);
    let node = FakeNode::start(&[200]).await?;
    let arguments = ["--store", &store, "--redis-user", "sidecar", "--redis-password-file", password];
    let mut sidecar = Sidecar::start(&[node.spec("odoo-1"), absent("odoo-2")], &arguments).await?;
    sidecar.wait_for(&[NodeState::Active, NodeState::Down]).await?;

    let ready = sidecar.get("/readyz").await?;
    ensure!(ready.status == 503 && ready.text().contains("TIME"), "{ready:?}");
    let drain = sidecar.post("/v1/nodes/odoo-1/drain", "").await?;
    ensure!(drain.status == 503, "a drain got {}: {}", drain.status, drain.text());
    let at = sidecar.address.to_string();
    let output = run(mooring(&["drain", "odoo-1", "--sidecar", &at]))?;
    ensure!(!output.status.success(), "{output:?}");
    let nodes = String::from_utf8(run(mooring(&["nodes", "--sidecar", &at]))?.stdout)?;
    let expected = ["the store refuses what is needed: TIME", "user sidecar on ~mooring:* &* -@all +evalsha"];
    ensure!(expected.iter().all(|part| nodes.contains(part)), "{nodes}");
    let json = String::from_utf8(run(mooring(&["nodes", "--json", "--sidecar", &at]))?.stdout)?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(json["store"]["problem"].as_str().is_some_and(|text| text.contains("TIME")), "{json}");

    tokio::time::sleep(Duration::from_secs(2)).await;
    let printed = sidecar.process.printed();
    let said = complaints(&printed).into_iter().filter(|line| line.contains("the store")).count();
    ensure!((1..=5).contains(&said), "{said} lines:\n{printed}");
    ensure!(printed.contains("ERROR") && printed.contains("TIME"), "{printed}");
    let metrics = sidecar.get("/metrics").await?.text();
    ensure!(metrics.contains("mooring_faults_total{about=\"the store\"}"), "{metrics}");

    allow(&redis, &[]).await?;
    sidecar.wait_until_ready().await?;
    ensure!(sidecar.post("/v1/nodes/odoo-2/drain", "").await?.status == 204);
    ensure!(redis.run::<usize>("HLEN mooring:{directory}:drains").await? == 2);
    let nodes = sidecar.get("/v1/nodes").await?.text();
    ensure!(nodes.contains("\"draining\"") && nodes.contains("\"store\":null"), "{nodes}");
    Ok(())
}

#[tokio::test]
async fn a_redis_that_is_gone_is_said_once_and_why() -> Result<()> {
    let store = format!("redis://127.0.0.1:{}/0", free_port()?);
    let sidecar = Sidecar::start(&[absent("a")], &["--store", &store]).await?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        let ready = sidecar.get("/readyz").await?;
        ensure!(ready.status == 503, "{ready:?}");
        let is_known = ready.text().contains("Connection refused") || ready.text().contains("probed yet");
        ensure!(is_known, "{}", ready.text());
        ensure!(sidecar.get(&format!("/v1/owners/{}", key("s"))).await?.status == 503);
    }
    let printed = sidecar.process.printed();
    let said = complaints(&printed).into_iter().filter(|line| !line.contains("is down")).count();
    ensure!((1..=6).contains(&said), "{said} lines:\n{printed}");
    Ok(())
}

#[tokio::test]
async fn a_renewed_token_is_taken_and_the_old_one_not_dropped_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, "the-first-token-of-all\n")?;
    let sidecar =
        Sidecar::start(&[absent("a")], &["--token-file", file.to_str().context("no path")?]).await?;
    let ask = async |token: &str| {
        let request = Request::get(format!("http://{}/v1/nodes", sidecar.address));
        let request = request.header("authorization", format!("Bearer {token}"));
        anyhow::Ok(browser::send(&browser::http1(), request.body(Full::default())?).await?.status)
    };
    ensure!(ask("the-first-token-of-all").await? == 200 && ask("the-second-token-of-all").await? == 401);
    // As an editor does it: another file takes its place.
    std::fs::write(folder.path().join("new"), "the-second-token-of-all\n")?;
    std::fs::rename(folder.path().join("new"), &file)?;
    let started = Instant::now();
    while ask("the-second-token-of-all").await? != 200 {
        ensure!(started.elapsed() < PATIENCE, "it is never taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(ask("the-first-token-of-all").await? == 200, "filters that were not told yet are locked out");
    ensure!(ask("the-third-token-of-all").await? == 401);
    let printed = sidecar.process.printed();
    ensure!(printed.contains("--token-file was renewed") && !printed.contains("token-of-all"), "{printed}");
    Ok(())
}
