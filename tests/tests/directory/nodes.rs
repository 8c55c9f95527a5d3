//! What sidecars know of nodes through Redis, when it fails, forgets, or somebody was told otherwise.

use harness::redis_servers::Server;

use super::*;

/// What `/v1/nodes` says.
async fn report(sidecar: SocketAddr) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&browser::get(sidecar, "/v1/nodes").await?.text())?)
}

async fn state_of(sidecar: SocketAddr, id: &str) -> Result<String> {
    let report = report(sidecar).await?;
    let node = report["nodes"].as_array().context("no nodes")?.iter().find(|node| node["id"] == id);
    Ok(node.and_then(|node| node["state"].as_str()).unwrap_or("unknown").to_owned())
}

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// For as long as a lost drain would need to be believed and more, a node is not taken for active.
async fn stays(sidecars: &[SocketAddr], id: &str, state: &str) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2_500) {
        for sidecar in sidecars {
            let found = state_of(*sidecar, id).await?;
            ensure!(found == state, "{id} is {found}, not {state}, after {:?}", started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_drain_that_redis_lost_is_put_back_and_one_that_ended_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let (far, near) = (Cable::to(redis.address).await?, Cable::to(redis.address).await?);
    let mut fakes = Vec::new();
    let mut list = Vec::new();
    for id in ["odoo-1", "odoo-2"] {
        let fake = FakeNode::start(&[200]).await?;
        list.extend(["--node".to_owned(), fake.spec(id)]);
        fakes.push(fake);
    }
    let (mut processes, mut sidecars) = (Vec::new(), Vec::new());
    for cable in [&far, &near] {
        let store = format!("redis://{}/0", cable.address);
        let (process, address) = start_sidecar(folder.path(), &store, &list).await?;
        processes.push(process);
        sidecars.push(address);
    }
    let becomes = async |state: &str| {
        for sidecar in &sidecars {
            let is = async || state_of(*sidecar, "odoo-2").await.is_ok_and(|found| found == state);
            wait_until("everybody hears of it", is).await?;
        }
        anyhow::Ok(())
    };
    becomes("active").await?;
    let drained = mooring(sidecars[0], &["drain", "odoo-2"]).await?;
    ensure!(drained.status.success(), "{drained:?}");
    becomes("draining").await?;

    // Emptied; then an older replica, in which it was not drained yet.
    redis.run::<()>("FLUSHALL").await?;
    stays(&sidecars, "odoo-2", "draining").await?;
    redis.run::<()>("DEL mooring:{directory}:drains").await?;
    let client = redis::Client::open(format!("redis://{}", redis.address))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let older = async |connection: &mut redis::aio::MultiplexedConnection, word: &str| -> Result<()> {
        let mut command = redis::cmd("HSET");
        command.arg("mooring:{directory}:drains").arg("odoo-2").arg(word);
        Ok(command.query_async(connection).await?)
    };
    older(&mut connection, "0 1000").await?;
    stays(&sidecars, "odoo-2", "draining").await?;
    let said =
        || processes.iter().map(|it| it.printed().matches("the store had lost").count()).sum::<usize>();
    ensure!((2..=3).contains(&said()), "it is said once each time, not {}", said());
    let word: String = redis.run("HGET mooring:{directory}:drains odoo-2").await?;
    ensure!(word.starts_with("1 "), "{word}");

    // Undone where one sidecar cannot hear it: it must not undo that again.
    far.cut();
    let undrained = mooring(sidecars[1], &["undrain", "odoo-2"]).await?;
    ensure!(undrained.status.success(), "{undrained:?}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    far.mend();
    becomes("active").await?;
    let before = said();
    stays(&sidecars, "odoo-2", "active").await?;
    redis.run::<()>("FLUSHALL").await?;
    stays(&sidecars, "odoo-2", "active").await?;
    ensure!(said() == before, "nothing was to be put back");
    Ok(())
}

#[tokio::test]
async fn sidecars_with_different_lists_say_so_and_stay_ready() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_redis, redis) = start_redis(folder.path()).await?;
    let store = format!("redis://{redis}/0");
    let (a, b) = (FakeNode::start(&[200]).await?, FakeNode::start(&[200]).await?);
    let straight = arguments(&["--node", &a.spec("odoo-1"), "--node", &b.spec("odoo-2")]);
    let crossed = arguments(&["--node", &b.spec("odoo-1"), "--node", &a.spec("odoo-2")]);
    let beside = ["--node-id", "odoo-1", "--advertise", &format!("{},weight=2", a.address)];
    let mut started = Vec::new();
    for list in [&straight, &crossed, &arguments(&beside)] {
        started.push(start_sidecar(folder.path(), &store, list).await?);
    }
    let differences = async |sidecar: SocketAddr| -> Result<Vec<String>> {
        Ok(serde_json::from_value(report(sidecar).await?["differences"].clone()).unwrap_or_default())
    };
    let first = started[0].1;
    let expected = [
        format!("odoo-1 is at {} here, at {} there", a.address, b.address),
        format!("odoo-2 is at {} here, at {} there", b.address, a.address),
        "odoo-1 has weight 1 here, 2 there".to_owned(),
    ];
    let told = async || {
        let lines = differences(first).await.unwrap_or_default();
        expected.iter().all(|part| lines.iter().any(|line| line.contains(part)))
    };
    wait_until("the differences are told", told).await?;
    let ready = browser::get(first, "/readyz").await?;
    ensure!(ready.status == 200 && ready.text().contains(&expected[0]), "{ready:?}");
    let shown = String::from_utf8(mooring(first, &["nodes"]).await?.stdout)?;
    ensure!(shown.contains(&expected[1]), "{shown}");
    let found = String::from_utf8(mooring(first, &["doctor", "--json"]).await?.stdout)?;
    ensure!(found.matches("lists-differ").count() == 1 && found.contains(&expected[1]), "{found}");
    // Each side says it, once for each difference.
    wait_until("the other side says so", async || {
        !differences(started[1].1).await.unwrap_or_default().is_empty()
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let log = started[0].0.printed();
    let errors = log.lines().filter(|line| line.contains("ERROR")).count();
    ensure!(errors == differences(first).await?.len(), "{log}");

    // They agree again.
    started.truncate(1);
    let agree = async || differences(first).await.is_ok_and(|lines| lines.is_empty());
    wait_until("it says no more", agree).await?;
    ensure!(started[0].0.printed().contains("all sidecars were told of the same nodes again"));
    Ok(())
}

#[tokio::test]
async fn an_emptied_redis_makes_no_node_disappear() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let store = format!("redis://{}/0", redis.address);
    let mut kept = Vec::new();
    for id in ["odoo-1", "odoo-2"] {
        let fake = FakeNode::start(&[200]).await?;
        let advertise = fake.address.to_string();
        let beside = arguments(&["--node-id", id, "--advertise", &advertise]);
        kept.push((fake, start_sidecar(folder.path(), &store, &beside).await?));
    }
    let (_door, door) = start_sidecar(folder.path(), &store, &[]).await?;
    let both = async || -> Result<bool> {
        let nodes = nodes_at(door).await?;
        Ok(nodes.len() == 2 && nodes.iter().all(|node| node.ends_with(" active")))
    };
    wait_until("both are known", async || both().await.unwrap_or_default()).await?;
    // A name and a problem that a terminal would obey; and a node under another's name.
    let hostile = r#"{"probe_ms":1.0,"carried":null,"problem":"\u001b[2J\u009b31m"}"#;
    let node = r#"{"id":"odoo-9","http":"127.0.0.1:9","gevent":null,"weight":1,"state":"down"}"#;
    let client = redis::Client::open(store.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    for name in ["odoo-9", "odoo-8"] {
        let mut command = redis::cmd("HSET");
        let text = format!("9999999999 {node} {hostile}");
        let _: () =
            command.arg("mooring:{directory}:nodes").arg(name).arg(text).query_async(&mut connection).await?;
    }
    wait_until("it is known", async || state_of(door, "odoo-9").await.is_ok_and(|it| it == "down")).await?;
    for more in [&[][..], &["--json"]] {
        let shown = String::from_utf8(mooring(door, &[&["nodes"], more].concat()).await?.stdout)?;
        ensure!(shown.contains("[2J") && !shown.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
    }
    ensure!(report(door).await?["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3));

    redis.run::<()>("FLUSHALL").await?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        for id in ["odoo-1", "odoo-2"] {
            let state = state_of(door, id).await?;
            ensure!(state == "active", "{id} is {state} {:?} after Redis was emptied", started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn nodes_that_nobody_knows_get_no_session() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let cable = Cable::to(redis.address).await?;
    cable.cut();
    let store = format!("redis://{}/0", cable.address);
    let list = arguments(&["--node", "odoo-1=127.0.0.1:1", "--node", "odoo-2=127.0.0.1:2"]);
    let (_sidecar, address) = start_sidecar(folder.path(), &store, &list).await?;
    let connections = browser::http1();
    let post = async |path: &str, body: Vec<u8>| {
        let request =
            Request::post(format!("http://{address}{path}")).header("content-type", "application/json");
        browser::send(&connections, request.body(Full::new(Bytes::from(body)))?).await
    };
    let key = SessionKey::of_session_id(b"s");
    let claim = async |node: &str, expect: u64| {
        let claim = Claim { key, node: NodeId::new(node)?, expect, origin: wire::Origin::Visit };
        post("/v1/claims", wire::encode(&claim)).await
    };
    // Redis may know it: nobody can say yet.
    let answer = claim("odoo-3", 0).await?;
    ensure!(answer.status == 503 && answer.text().contains("not heard of yet"), "{answer:?}");
    cable.mend();
    let refused = async || claim("odoo-3", 0).await.is_ok_and(|answer| answer.status == 404);
    wait_until("it is known that there is none", refused).await?;
    let answer = claim("odoo-3", 0).await?;
    ensure!(answer.text().contains("there are: odoo-1, odoo-2"), "{answer:?}");
    let granted = async || claim("odoo-1", 0).await.is_ok_and(|answer| answer.status == 200);
    wait_until("a node of the list is granted a session", granted).await?;

    // Only what a node owns is moved from it, and only from a node.
    let sessions = format!("[[\"{key}\",1]]");
    for (node, status) in [("odoo-2", 200), ("odoo-3", 404), ("%1b%5b2J", 404)] {
        let answer = post(&format!("/v1/nodes/{node}/move"), sessions.clone().into_bytes()).await?;
        ensure!(answer.status == status && !answer.text().contains("\"moved\":1"), "{node}: {answer:?}");
        ensure!(!answer.text().contains('\u{1b}'), "{answer:?}");
    }
    let lease = r#"{"name":"\u001b[2J","token":1,"for_ms":1000,"held":true}"#;
    let answer = post("/v1/cron", lease.into()).await?;
    ensure!(answer.status == 400 && answer.text().contains("name"), "{answer:?}");
    Ok(())
}
