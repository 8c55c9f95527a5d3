//! Who stands in the doors: idle, slow, and what speaks something else; and web pages.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// Files that the sidecar may have open: what many systems give by default.
const FILES: usize = 1_024;

/// A sidecar that may have few files open, and what its `--token-file` says.
async fn start_with_few_files(folder: &Path, nodes: &[String]) -> Result<(Process, SocketAddr)> {
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", &format!("ulimit -n {FILES} && exec \"$@\""), "sh"]);
    command.arg(program("mooring")).args(["serve", "--listen", &address.to_string()]);
    command.args(["--probe-interval-ms", "50"]).arg("--state-dir").arg(folder.join("state"));
    for node in nodes {
        command.args(["--node", node]);
    }
    let mut process = Process::start("the sidecar", command, &folder.join("sidecar.log"))?;
    let ready = async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
    process.wait(PATIENCE, ready).await?;
    Ok((process, address))
}

/// Lets this process have more connections than the sidecar.
fn raise_own_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

/// Whether the server ends a connection in time, with an answer or without; what it said.
fn is_ended(mut stream: TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => anyhow::bail!("it is kept for {PATIENCE:?}: {error}"),
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn who_only_stands_there_keeps_nobody_out() -> Result<()> {
    raise_own_limit()?;
    let folder = tempfile::tempdir()?;
    let node = FakeNode::start(&[200]).await?;
    let (process, address) = start_with_few_files(folder.path(), &[node.spec("a")]).await?;
    let filter = browser::http1();
    let ask = async |path: &str| {
        let request = Request::get(format!("http://{address}{path}")).body(Full::<Bytes>::default())?;
        let answer = browser::send(&filter, request).await?;
        ensure!(answer.status == 200, "{path} got {}: {}", answer.status, answer.text());
        anyhow::Ok(answer.text())
    };
    // One that a filter waits for, throughout.
    let watch = watch_at(address, Cursor::default(), 0, 0).await?;
    let digest = watch.membership.context("no nodes")?.digest();
    let watching = tokio::spawn(watch_at(address, watch.cursor, digest, FOREVER));

    let mut standing = Vec::new();
    let openings: [&[u8]; 6] = [
        b"",
        b"GET /healthz HTT",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ",
        b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nand",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for number in 0..FILES + 276 {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        // It may have been ended while it was written to.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, openings[number % openings.len()]).await;
        standing.push(stream);
        if number % 100 == 0 {
            ask("/healthz").await?;
        }
    }
    let (probed, started) = (node.answered(), Instant::now());
    for path in ["/healthz", "/readyz", "/metrics", "/v1/nodes", &format!("/v1/owners/{}", key("s"))] {
        ask(path).await?;
        // Over a new connection too.
        ensure!(browser::get(address, path).await?.status == 200, "{path}");
    }
    while node.answered() < probed + 5 {
        ensure!(started.elapsed() < PATIENCE, "the node is not probed any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let nodes = ask("/v1/nodes").await?;
    ensure!(nodes.contains("\"active\""), "{nodes}");
    let metrics = ask("/metrics").await?;
    ensure!(metrics.contains("mooring_connections_closed_total{why=\"Room\"}"), "{metrics}");
    ensure!(!watching.is_finished(), "a filter that waits was sent away: {:?}", watching.await?);
    let printed = process.printed();
    ensure!(printed.contains(&format!("{FILES} open files")), "{printed}");
    ensure!(printed.lines().count() < 12, "it says too much:\n{printed}");
    Ok(())
}

#[tokio::test]
async fn what_does_not_arrive_is_not_waited_for() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    let good = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut waits = Vec::new();
    let cases: [(&[u8], bool); 6] = [
        (b"", false),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n", false),
        (b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nand", false),
        (
            b"POST /v1/nodes/a/drain HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n",
            false,
        ),
        // Behind a good request, on the same connection.
        (b"GET /healthz HTT", true),
        (b"POST /v1/cron HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{", true),
    ];
    for (opening, is_second) in cases {
        let mut stream = TcpStream::connect(sidecar.address)?;
        if is_second {
            stream.write_all(good)?;
            let mut answer = [0; 512];
            ensure!(stream.read(&mut answer)? > 0, "no answer");
        }
        stream.write_all(opening)?;
        waits.push(tokio::task::spawn_blocking(move || is_ended(stream)));
    }
    // One that goes on and on, so that it is never silent.
    let mut dripping = TcpStream::connect(sidecar.address)?;
    let drips = dripping.try_clone()?;
    waits.push(tokio::task::spawn_blocking(move || is_ended(drips)));
    std::thread::spawn(move || {
        let _ = dripping.write_all(b"GET /healthz HTTP/1.1\r\n");
        while dripping.write_all(b"a: b\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    // Whoever has asked and may ask again is kept.
    let mut kept = TcpStream::connect(sidecar.address)?;
    kept.write_all(good)?;
    for wait in waits {
        wait.await??;
    }
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let said = is_ended(kept)?;
    ensure!(said.matches("alive").count() == 2, "{said}");
    let metrics = sidecar.get("/metrics").await?.text();
    ensure!(metrics.contains("mooring_connections_closed_total{why=\"Slow\"}"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn web_pages_are_not_answered() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("odoo-1")], &[]).await?;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", sidecar.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        browser::send(&browser::http1(), request.body(Full::new("x=1".into()))?).await
    };
    let paths = [
        ("POST", "/v1/nodes/odoo-1/drain"),
        ("POST", "/v1/nodes/odoo-1/undrain"),
        ("POST", "/v1/claims"),
        ("POST", "/v1/cron"),
        ("GET", "/v1/nodes"),
        ("GET", "/v1/watch?generation=0&position=0&membership=0&wait_ms=0"),
        ("GET", "/metrics"),
        ("GET", "/readyz"),
    ];
    for (method, path) in paths {
        for headers in [
            &[("origin", "http://evil")][..],
            &[("origin", "null"), ("content-type", "text/plain")],
            &[("host", "evil")],
            &[("host", "evil:7070")],
            &[("sec-fetch-site", "cross-site")],
        ] {
            let answer = send(method, path, headers).await?;
            ensure!(
                answer.status == 403,
                "{method} {path} {headers:?} got {}: {}",
                answer.status,
                answer.text()
            );
        }
    }
    let refused = send("POST", "/v1/nodes/odoo-1/drain", &[("host", "evil")]).await?.text();
    ensure!(refused.contains("evil") && refused.contains("--token-file"), "{refused}");
    let nodes = sidecar.get("/v1/nodes").await?.text();
    ensure!(!nodes.contains("draining"), "{nodes}");
    let good = send("POST", "/v1/nodes/odoo-1/drain", &[("host", "mooring")]).await?;
    ensure!(good.status == 204, "the filter's and the commands' own got {}", good.status);
    let metrics = sidecar.get("/metrics").await?.text();
    ensure!(metrics.contains("mooring_requests_foreign_total 41"), "{metrics}");
    Ok(())
}
