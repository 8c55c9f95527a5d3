//! Whoever collects sessions and never comes back.

use super::*;

#[tokio::test]
async fn a_crawler_does_not_fill_redis() -> Result<()> {
    const SESSIONS: usize = 20_000;
    let folder = tempfile::tempdir()?;
    let (_redis, redis) = start_redis(folder.path()).await?;
    let more = ["--node=odoo-1=127.0.0.1:1", "--provisional-seconds=3"].map(str::to_owned);
    let (_sidecar, address) = start_sidecar(folder.path(), &format!("redis://{redis}/0"), &more).await?;
    let client = redis::Client::open(format!("redis://{redis}/0"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let memory = async |connection: &mut redis::aio::MultiplexedConnection| -> Result<(usize, usize)> {
        let keys = redis::cmd("DBSIZE").query_async(connection).await?;
        let info: String = redis::cmd("INFO").arg("memory").query_async(connection).await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok((keys, used.context("no used_memory")?.parse()?))
    };
    let before = memory(&mut connection).await?;
    let connections = browser::http1();
    let claimed = |number: usize| Claim {
        key: SessionKey::of_session_id(&number.to_be_bytes()),
        node: NodeId::new("odoo-1").expect("a name"),
        expect: 0,
        origin: wire::Origin::Visit,
    };
    let started = Instant::now();
    for_each(SESSIONS, async |number| {
        let body = Full::new(Bytes::from(wire::encode(&claimed(number))));
        let request = Request::post(format!("http://{address}/v1/claims")).body(body)?;
        let answer = browser::send(&connections, request).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    })
    .await?;
    let (rate, full) = (SESSIONS as f64 / started.elapsed().as_secs_f64(), memory(&mut connection).await?);
    // One of them is somebody who comes back.
    let returns = claimed(SESSIONS - 1).key;
    browser::get(address, &format!("/v1/owners/{returns}")).await?;
    let each = (full.1 - before.1) / (full.0 - before.0).max(1);
    println!(
        "{SESSIONS} anonymous sessions at {rate:.0}/s: {each} bytes each in Redis; at 1,000/s for 300 s {} MB",
        each * 300 / 1_000
    );
    let mut left = full.0;
    wait_until("the sessions are forgotten", async || {
        left = memory(&mut connection).await.map_or(usize::MAX, |(keys, _)| keys);
        left <= before.0 + 1
    })
    .await?;
    let kept: bool =
        redis::cmd("EXISTS").arg(format!("mooring:owner:{{{returns}}}")).query_async(&mut connection).await?;
    ensure!(kept, "the session of somebody who came back is forgotten");
    Ok(())
}
