//! Leases, and sidecars that share through a real Redis.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures::future::try_join_all;
use harness::{
    orm_cache::{CacheSidecar, Found, SECRET, key},
    process::wait_until,
    redis_servers::Server,
};

const FULL: usize = 600 << 10;
const WORKERS: usize = 20;

/// Asks for a value, and computes it under a lease; whether it did.
async fn work(sidecar: &CacheSidecar, number: u64) -> Result<bool> {
    let mut client = sidecar.connect().await?;
    match client.get(key(number), 4_000).await? {
        Found::Value(value) => {
            ensure!(value == vec![number as u8; FULL]);
            Ok(false)
        }
        Found::Lease(lease) => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.put(key(number), lease, (1, 1), &vec![number as u8; FULL]).await?;
            Ok(true)
        }
        Found::Miss => bail!("waited in vain"),
    }
}

async fn computed(sidecars: &[&CacheSidecar], number: u64) -> Result<usize> {
    let workers = (0..WORKERS).map(|worker| work(sidecars[worker % sidecars.len()], number));
    Ok(try_join_all(workers).await?.into_iter().filter(|did| *did).count())
}

#[tokio::test]
async fn of_many_who_miss_one_computes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sidecar = CacheSidecar::start(folder.path(), None, &[]).await?;
    ensure!(computed(&[&sidecar], 1).await? == 1);
    let row = sidecar.report()?["methods"][0].clone();
    ensure!(row["misses"] == 1 && row["waits"] == WORKERS as u64 - 1 && row["bytes"] == FULL as u64, "{row}");
    ensure!(row["saved_ms"] == 100.0 * (WORKERS as f64 - 1.0), "{row}");
    let metrics = harness::browser::get(sidecar.address, "/metrics").await?.text();
    let line = r#"mooring_orm_cache_lookups_total{cache="assets",outcome="Miss"} 1"#;
    ensure!(metrics.contains(line), "{metrics}");

    // Who computes gives up, or goes away: another one does it, at once.
    for gives_up in [true, false] {
        let number = 2 + u64::from(gives_up);
        let (mut first, mut second) = (sidecar.connect().await?, sidecar.connect().await?);
        let Found::Lease(lease) = first.get(key(number), 0).await? else { bail!("no lease") };
        ensure!(second.get(key(number), 50).await? == Found::Miss, "two leases of one value");
        let began = Instant::now();
        let waiting = tokio::spawn(async move { second.get(key(number), 4_000).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        if gives_up {
            first.release(key(number), lease).await?;
        } else {
            drop(first);
        }
        ensure!(matches!(waiting.await??, Found::Lease(_)));
        ensure!(began.elapsed() < Duration::from_secs(3), "it waited to the end");
    }
    Ok(())
}

#[tokio::test]
async fn one_node_s_work_serves_all_until_redis_is_gone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let start = async |name: &str, secret: &'static str| {
        CacheSidecar::start(&folder.path().join(name), Some((redis.address, secret)), &[]).await
    };
    let (a, b) = (start("a", SECRET).await?, start("b", SECRET).await?);
    ensure!(computed(&[&a, &b], 1).await? == 1, "it was computed at both");
    let (mut at_a, mut at_b) = (a.connect().await?, b.connect().await?);

    // Invalidated at one, freed at both, and in Redis.
    at_a.invalidate((1, 2)).await?;
    wait_until("b frees it", async || b.report().is_ok_and(|report| report["bytes"] == 0)).await?;
    let kept = async || redis.run::<Vec<String>>("KEYS mooring:value:*").await;
    wait_until("Redis frees it", async || kept().await.is_ok_and(|keys| keys.is_empty())).await?;

    // A sidecar of another secret, and one who writes into Redis: neither is believed.
    let c = start("c", "another secret of thirty-two chars").await?;
    let mut at_c = c.connect().await?;
    let Found::Lease(lease) = at_c.get(key(2), 0).await? else { bail!("no lease") };
    at_c.put(key(2), lease, (1, 2), b"forged").await?;
    wait_until("it is in Redis", async || kept().await.is_ok_and(|keys| keys.len() == 1)).await?;
    ensure!(
        matches!(at_a.get(key(2), 0).await?, Found::Lease(_)),
        "a value of another secret was handed out"
    );
    let name = kept().await?.remove(0);
    redis.run::<()>(&format!("SET {name} rubbish")).await?;
    ensure!(matches!(at_b.get(key(2), 0).await?, Found::Lease(_)), "rubbish was handed out");
    // Signed, but of another key.
    at_a.put(key(3), 0, (1, 2), b"three").await?;
    wait_until("it is in Redis", async || kept().await.is_ok_and(|keys| keys.len() == 2)).await?;
    let other = kept().await?.into_iter().find(|other| *other != name).unwrap_or_default();
    redis.run::<i64>(&format!("COPY {other} {} REPLACE", other.replace("0000000003", "0000000004"))).await?;
    ensure!(at_b.get(key(3), 0).await? == Found::Value(b"three".to_vec()));
    ensure!(matches!(at_b.get(key(4), 0).await?, Found::Lease(_)), "a value of another key was handed out");

    redis.kill();
    let began = Instant::now();
    for number in 10..30 {
        let Found::Lease(lease) = at_b.get(key(number), 100).await? else { bail!("no lease") };
        at_b.put(key(number), lease, (1, 2), b"alone").await?;
        ensure!(at_b.get(key(number), 0).await? == Found::Value(b"alone".to_vec()));
    }
    println!("Redis was killed: 20 values were missed, put and found in {:.1?}", began.elapsed());
    ensure!(b.report()?["sharing"] == false, "{}", b.report()?);
    Ok(())
}
