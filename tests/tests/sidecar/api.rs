//! Look-ups, claims, health and readiness; and what is asked wrongly.

use std::net::TcpListener;

use super::*;

#[tokio::test]
async fn sessions_are_looked_up_and_claimed() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a"), "b=127.0.0.1:2".to_owned()], &[]).await?;
    ensure!(sidecar.owner("s").await?.is_none());
    let first = sidecar.claim("s", "a", 0).await?;
    ensure!(first.granted && first.owner.epoch == 1, "{first:?}");
    ensure!(sidecar.owner("s").await? == Some(("a".to_owned(), 1)));
    let refused = sidecar.claim("s", "b", 0).await?;
    ensure!(!refused.granted && refused.owner == first.owner, "{refused:?}");
    ensure!(sidecar.claim("s", "b", 1).await?.granted);
    ensure!(sidecar.owner("s").await? == Some(("b".to_owned(), 2)));
    let answer = sidecar.get(&format!("/v1/owners/{}", key("s"))).await?;
    ensure!(answer.header("content-type") == wire::CONTENT_TYPE, "{:?}", answer.headers);
    Ok(())
}

#[tokio::test]
async fn what_is_no_claim_and_no_key_is_refused() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    let claim = |expect| Claim {
        key: key("s"),
        node: affinity::NodeId::new("odoo-1").unwrap(),
        expect,
        origin: wire::Origin::Visit,
    };
    let good = wire::encode(&claim(0));
    let mut rubbish: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    rubbish.extend([
        [&good[..], b"\0"].concat(),
        b"{\"key\":\"00000000000000000000000000000000\",\"node\":\"a\",\"expect\":0}".to_vec(),
        vec![0xff; 200],
        // Node names that cannot be: empty, with a slash, no UTF-8, a length that is a lie.
        [&[0; 16][..], b"\x00\x00"].concat(),
        [&[0; 16][..], b"\x03a/b\x00"].concat(),
        [&[0; 16][..], b"\x01\xff\x00"].concat(),
        [&[0; 16][..], b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00"].concat(),
        // Epochs that no session can have reached.
        wire::encode(&claim(u64::MAX)),
        wire::encode(&claim(1 << 53)),
    ]);
    for body in rubbish {
        let answer = sidecar.post("/v1/claims", body.clone()).await?;
        ensure!(answer.status == 400, "{body:?} got {}: {}", answer.status, answer.text());
    }
    ensure!(sidecar.owner("s").await?.is_none(), "rubbish was taken for a claim");

    for (bytes, expected) in [(4 << 10, 400), ((4 << 10) + 1, 413)] {
        let answer = sidecar.post("/v1/claims", vec![0; bytes]).await?;
        ensure!(answer.status == expected, "{bytes} bytes got {}", answer.status);
    }
    // Who is still sending when it is refused may find the connection closed before the answer.
    if let Ok(answer) = sidecar.post("/v1/claims", vec![0; 1 << 20]).await {
        ensure!(answer.status == 413, "a megabyte got {}", answer.status);
    }
    let hexadecimal = key("s").to_string();
    for bad in [
        "x",
        &hexadecimal[1..],
        &format!("{hexadecimal}0"),
        &hexadecimal.to_uppercase(),
        &"g".repeat(32),
        "..%2f..",
        "%00",
        "%ff",
    ] {
        let answer = sidecar.get(&format!("/v1/owners/{bad}")).await?;
        ensure!(answer.status == 400, "{bad} got {}: {}", answer.status, answer.text());
    }
    for (path, expected) in [("/v1/owners/", 404), ("/v1/claims", 405), ("/", 404), ("/v2/watch", 404)] {
        let answer = sidecar.get(path).await?;
        ensure!(answer.status == expected, "{path} got {}", answer.status);
    }
    ensure!(sidecar.claim("s", "a", 0).await?.granted, "it still works");
    Ok(())
}

#[tokio::test]
async fn it_is_ready_when_every_node_was_probed() -> Result<()> {
    // A node that takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let good = FakeNode::start(&[200]).await?;
    let nodes = [good.spec("a"), format!("b={}", silent.local_addr()?)];
    let mut sidecar = Sidecar::start(&nodes, &["--probe-timeout-ms", "60000"]).await?;
    while good.answered() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = sidecar.get("/readyz").await?;
    ensure!(answer.status == 503, "ready before every node was probed");
    ensure!(answer.text().contains("not every node has been probed"), "{}", answer.text());
    let alive = sidecar.get("/healthz").await?;
    ensure!(alive.status == 200 && alive.text() == "alive\n", "it is alive all the same");
    drop(silent);
    sidecar.wait_until_ready().await?;
    Ok(())
}

#[tokio::test]
async fn without_its_store_it_is_alive_and_not_ready() -> Result<()> {
    let store = format!("redis://mooring:s3cret@127.0.0.1:{}/0", free_port()?);
    let node = FakeNode::start(&[200]).await?;
    let sidecar = Sidecar::start(&[node.spec("a")], &["--store", &store]).await?;
    sidecar.wait_for(&[NodeState::Active]).await?;
    let (started, mut said) = (Instant::now(), String::new());
    let claim =
        Claim { key: key("s"), node: affinity::NodeId::new("a")?, expect: 0, origin: wire::Origin::Visit };
    for answer in [
        sidecar.get("/readyz").await?,
        sidecar.get(&format!("/v1/owners/{}", key("s"))).await?,
        sidecar.post("/v1/claims", wire::encode(&claim)).await?,
    ] {
        ensure!(answer.status == 503 && answer.text().contains("the store cannot be reached"), "{answer:?}");
        said += &answer.text();
    }
    ensure!(started.elapsed() < Duration::from_secs(15), "that took {:?}", started.elapsed());
    ensure!(sidecar.get("/healthz").await?.status == 200);
    ensure!(metrics::value(&sidecar, "mooring_store_up").await? == 0.0);
    let report = sidecar.get("/v1/nodes").await?.text();
    ensure!(report.contains("\"sessions\":0"), "{report}");
    said += &sidecar.process.printed();
    ensure!(said.contains("127.0.0.1") && !said.contains("s3cret"), "{said}");
    Ok(())
}

#[tokio::test]
async fn who_asks_too_much_at_once_is_refused() -> Result<()> {
    // A Redis that takes connections and says nothing: whoever asks waits for a while.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let store = format!("redis://{}/0", silent.local_addr()?);
    let sidecar = Sidecar::start(&[absent("a")], &["--store", &store, "--most-requests", "2"]).await?;
    let paths: Vec<String> =
        (0..6).map(|number| format!("/v1/owners/{}", key(&number.to_string()))).collect();
    let answers = futures::future::try_join_all(paths.iter().map(|path| sidecar.get(path))).await?;
    let refused = answers.iter().filter(|answer| answer.text().contains("--most-requests")).count();
    ensure!(refused > 0 && refused <= 4, "{refused} of 6 were refused");
    ensure!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
    let (cursor, membership) = sidecar.wait_for(&[NodeState::Down]).await?;
    // Who waits for changes takes nobody else's place.
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(sidecar.waiting(cursor, membership).await?);
    }
    let third = sidecar.watch(cursor, membership, FOREVER).await;
    ensure!(third.is_err_and(|error| error.to_string().contains("503")), "a third may wait");
    let answer = sidecar.get("/v1/nodes").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let counted = metrics::value(&sidecar, "mooring_requests_refused_total").await?;
    ensure!(counted == refused as f64 + 1.0, "{counted} were counted");
    // Who leaves makes room.
    waiting.pop().context("nobody")?.abort();
    let started = Instant::now();
    while sidecar.watch(cursor, membership, 0).await.is_err() {
        ensure!(started.elapsed() < PATIENCE, "there is no room again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn nobody_has_scheduled_jobs_for_ever() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    for (for_ms, status) in [(3_600_000, 200), (3_600_001, 400), (u64::MAX, 400)] {
        let body = format!(r#"{{"name":"here","token":1,"for_ms":{for_ms},"held":true}}"#);
        let request = Request::post(format!("http://{}/v1/cron", sidecar.address));
        let request = request.header("content-type", "application/json").body(Full::new(body.into()))?;
        let answer = browser::send(&browser::http1(), request).await?;
        ensure!(answer.status == status, "{for_ms} got {}: {}", answer.status, answer.text());
    }
    Ok(())
}
