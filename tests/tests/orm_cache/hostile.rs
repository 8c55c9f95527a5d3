//! Whatever comes over the socket: an error and the connection's end, nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::orm_cache::{CacheClient, CacheSidecar, Found, key};

const MB: usize = 1 << 20;

/// The connection ends, and a good client goes on.
async fn ends(sidecar: &CacheSidecar, what: &str, bytes: &[u8]) -> Result<()> {
    let mut bad = sidecar.connect().await?;
    bad.send(bytes).await?;
    let end = async {
        loop {
            match bad.answer().await {
                Ok((0xff, text)) => ensure!(!text.is_empty(), "{what}: an error without a text"),
                Ok((kind, _)) => anyhow::bail!("{what}: answered with {kind:#x}"),
                Err(_) => return Ok(()),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await??;
    let mut good = sidecar.connect().await?;
    ensure!(matches!(good.get(key(1), 0).await?, Found::Value(_)), "{what}: a good client is not served");
    Ok(())
}

#[tokio::test]
async fn hostile_bytes_end_their_connection_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sidecar = CacheSidecar::start(folder.path(), None, &[]).await?;
    sidecar.connect().await?.put(key(1), 0, (1, 1), b"value").await?;
    ends(&sidecar, "a length of 4 GB", &[0xff, 0xff, 0xff, 0xff, 1, 1]).await?;
    ends(&sidecar, "no length", &[0, 0, 0, 0]).await?;
    ends(&sidecar, "another version", &[0, 0, 0, 2, 9, 5]).await?;
    ends(&sidecar, "an unknown kind", &[0, 0, 0, 2, 1, 99]).await?;
    ends(&sidecar, "a request of HTTP", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    ends(&sidecar, "half a length", &[0, 0]).await?;
    ends(&sidecar, "half a frame", &[0, 0, 0, 90, 1, 1, 7, 7]).await?;
    let mut noise = vec![0, 0, 4, 0, 1, 2];
    noise.extend((0..1_022).map(|_| rand::random::<u8>()));
    noise[50..90].fill(0);
    ends(&sidecar, "noise in a put", &noise).await?;
    // The random bytes after a frame are a frame's beginning as well.
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..rand::random_range(4..300)).map(|_| rand::random::<u8>() | 0x80).collect();
        sidecar.connect().await?.send(&bytes).await?;
    }
    ends(&sidecar, "and at last", &[0x80, 0, 0, 0]).await?;
    let log = sidecar.process.printed();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test]
async fn connections_are_bounded_and_room_comes_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sidecar = CacheSidecar::start(folder.path(), None, &[]).await?;
    sidecar.connect().await?.put(key(1), 0, (1, 1), b"value").await?;
    let mut many: Vec<CacheClient> = Vec::new();
    let mut refused = 0;
    for _ in 0..600 {
        let mut client = sidecar.connect().await?;
        match client.get(key(1), 0).await {
            Ok(_) => many.push(client),
            Err(_) => refused += 1,
        }
    }
    ensure!(refused >= 80 && many.len() <= 512, "{} are served, {refused} refused", many.len());
    drop(many);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut next = sidecar.connect().await?;
    ensure!(next.get(key(1), 0).await? == Found::Value(b"value".to_vec()));
    Ok(())
}

#[tokio::test]
async fn a_flood_stays_within_the_memory_bound() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sidecar = CacheSidecar::start(folder.path(), None, &["--cache-mb", "32"]).await?;
    let mut client = sidecar.connect().await?;
    let full = vec![b'x'; 600 << 10];
    for number in 0..500 {
        client.put(key(number), 0, (1, 1), &full).await?;
        ensure!(
            client.get(key(number), 0).await? == Found::Value(full.clone()),
            "value {number} is not there"
        );
    }
    let report = sidecar.report()?;
    let (bytes, most) = (report["bytes"].as_u64().unwrap_or(u64::MAX), report["most_bytes"].as_u64());
    ensure!(most == Some(32 << 20) && bytes <= 32 << 20 && bytes > 16 << 20, "{report}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.process.id()))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next());
    let resident: usize = resident.unwrap_or_default().parse()?;
    println!("300 MB were put into 32 MB: {} MB are held, {} MB resident", bytes >> 20, resident >> 10);
    ensure!((resident << 10) < 200 * MB, "{resident} KB are resident");
    // An invalidation frees it at once.
    client.invalidate((1, 2)).await?;
    ensure!(matches!(client.get(key(499), 0).await?, Found::Lease(_)));
    ensure!(sidecar.report()?["bytes"] == 0);
    Ok(())
}
