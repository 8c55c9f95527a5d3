//! Where it listens, how it is told so, and how it ends.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
};

use super::*;

/// What is answered to a GET over a Unix socket, head and body.
fn get_over(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: mooring\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A sidecar on a Unix socket.
async fn start_on(socket: &Path, folder: &Path, name: &str) -> Result<Process> {
    let mut command = mooring(&["serve", "--node", "a=127.0.0.1:1", "--probe-interval-ms", "50"]);
    command.arg("--listen").arg(format!("unix:{}", socket.display()));
    command.arg("--state-dir").arg(folder.join(name));
    let mut process = Process::start("the sidecar", command, &folder.join(format!("{name}.log")))?;
    process.wait(PATIENCE, async || get_over(socket, "/healthz").ok()).await?;
    Ok(process)
}

#[tokio::test]
async fn a_unix_socket_is_its_group_s_and_goes_with_the_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("mooring.sock");
    let first = start_on(&socket, folder.path(), "first").await?;
    ensure!(get_over(&socket, "/healthz")?.ends_with("alive\n"));
    let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "its mode is {mode:o}");

    // Somebody listens: it is not taken away.
    let mut command = mooring(&["serve", "--node", "a=127.0.0.1:1"]);
    command.arg("--listen").arg(format!("unix:{}", socket.display()));
    command.arg("--state-dir").arg(folder.path().join("second"));
    let said = String::from_utf8(run(command)?.stderr)?;
    ensure!(said.contains("--listen") && said.contains("another process listens on it"), "{said}");
    ensure!(get_over(&socket, "/healthz")?.ends_with("alive\n"), "the first was disturbed");

    // `mooring nodes` speaks to it too.
    let sidecar = format!("unix:{}", socket.display());
    let output = run(mooring(&["nodes", "--sidecar", &sidecar]))?;
    ensure!(output.status.success() && String::from_utf8(output.stdout)?.contains("127.0.0.1:1"));

    let status = first.terminate()?;
    ensure!(status.success() && !socket.exists(), "{status}, and the socket is still there");
    Ok(())
}

#[tokio::test]
async fn a_socket_that_a_killed_process_left_is_replaced_and_a_file_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("mooring.sock");
    start_on(&socket, folder.path(), "killed").await?.kill();
    ensure!(socket.exists(), "a killed process cannot tidy up");
    start_on(&socket, folder.path(), "killed").await?.terminate()?;

    drop(UnixListener::bind(&socket)?);
    start_on(&socket, folder.path(), "other").await?.terminate()?;

    std::fs::write(&socket, "somebody's")?;
    let mut command = mooring(&["serve", "--node", "a=127.0.0.1:1"]);
    command.arg("--listen").arg(format!("unix:{}", socket.display()));
    command.arg("--state-dir").arg(folder.path().join("state"));
    let output = run(command)?;
    ensure!(!output.status.success() && std::fs::read_to_string(&socket)? == "somebody's");
    Ok(())
}

#[tokio::test]
async fn everything_can_be_said_by_the_environment() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = FakeNode::start(&[404]).await?;
    let (port, socket) = (free_port()?, folder.path().join("mooring.sock"));
    let mut command = mooring(&["serve"]);
    command.env("MOORING_NODES", format!("{},weight=3 {}", node.spec("odoo-b"), absent("odoo-a")));
    command.env("MOORING_LISTEN", format!("127.0.0.1:{port} unix:{}", socket.display()));
    command.env("MOORING_STATE_DIR", folder.path().join("state"));
    command.env("MOORING_STORE", "embedded").env("MOORING_CLAIM_LIFETIME_SECONDS", "3600");
    command.env("MOORING_PROBE_PATH", "/there").env("MOORING_PROBE_INTERVAL_MS", "50");
    command.env("MOORING_PROBE_TIMEOUT_MS", "1000").env("MOORING_DOWN_AFTER", "1");
    command.env("MOORING_UP_AFTER", "1").env("MOORING_LOG_FORMAT", "json");
    let mut process = Process::start("the sidecar", command, &folder.path().join("sidecar.log"))?;
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let ready = async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
    process.wait(PATIENCE, ready).await?;
    ensure!(get_over(&socket, "/readyz")?.ends_with("ready\n"));
    ensure!(folder.path().join("state/directory.redb").is_file());

    let mut command = mooring(&["nodes"]);
    command.env("MOORING_SIDECAR", format!("127.0.0.1:{port}")).env("MOORING_JSON", "true");
    let output = run(command)?;
    let nodes: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let [a, b] = [&nodes["nodes"][0], &nodes["nodes"][1]];
    ensure!(a["id"] == "odoo-a" && b["id"] == "odoo-b" && b["weight"] == 3, "{nodes}");
    ensure!(b["problem"].as_str().is_some_and(|problem| problem.contains("/there answers 404")), "{nodes}");
    let first = process.printed().lines().next().map(str::to_owned).context("no log")?;
    ensure!(serde_json::from_str::<serde_json::Value>(&first).is_ok(), "{first}");
    Ok(())
}

#[tokio::test]
async fn it_ends_soon_and_well_while_filters_wait_and_clients_dawdle() -> Result<()> {
    let mut sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    sidecar.wait_until_ready().await?;
    let (cursor, digest) = sidecar.wait_for(&[NodeState::Down]).await?;
    let watch = sidecar.waiting(cursor, digest).await?;
    // One that never says what it wants.
    let mut idle = std::net::TcpStream::connect(sidecar.address)?;
    idle.write_all(b"GET /healthz HTTP/1.1\r\n")?;

    let started = Instant::now();
    let ended = tokio::task::spawn_blocking(move || sidecar.process.terminate());
    let reply = watch.await??;
    ensure!(!reply.reset && reply.cursor == cursor, "{reply:?}");
    drop(idle);
    let status = ended.await??;
    ensure!(
        status.success() && started.elapsed() < Duration::from_secs(5),
        "{status}, {:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_client_that_dawdles_does_not_keep_it_for_ever() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    let mut idle = std::net::TcpStream::connect(sidecar.address)?;
    idle.write_all(b"POST /v1/claims HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nand then")?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let status = tokio::task::spawn_blocking(move || sidecar.process.terminate()).await??;
    ensure!(status.success(), "{status} after {:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn claims_outlive_a_restart_and_a_kill() -> Result<()> {
    let nodes = [absent("a")];
    let mut sidecar = Sidecar::start(&nodes, &[]).await?;
    for round in ["ended", "killed"] {
        let (before, after) = (format!("before it is {round}"), format!("after it was {round}"));
        ensure!(sidecar.claim(&before, "a", 0).await?.granted);
        if round == "ended" {
            sidecar.process.terminate()?;
        } else {
            sidecar.process.kill();
        }
        sidecar.process = start_in(sidecar.folder.path(), sidecar.address, &nodes, &[]).await?;
        ensure!(sidecar.owner(&before).await? == Some(("a".to_owned(), 1)), "{before}");
        ensure!(sidecar.claim(&after, "a", 0).await?.granted, "{after}");
    }
    Ok(())
}

#[tokio::test]
async fn with_a_token_only_who_shows_it_is_answered() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (file, token) = (folder.path().join("token"), "a-token-of-some-length");
    std::fs::write(&file, format!("{token}\n"))?;
    let file = file.to_str().context("no path")?;
    let sidecar = Sidecar::start(&[absent("odoo-1")], &["--token-file", file]).await?;
    let paths = [
        "/v1/nodes",
        &format!("/v1/owners/{}", key("s")),
        "/v1/watch?generation=0&position=0&membership=0&wait_ms=0",
    ];
    for (authorization, expected) in
        [(None, 401), (Some("Bearer wrong"), 401), (Some(&*format!("Bearer {token}")), 200)]
    {
        for path in paths {
            let mut request = Request::get(format!("http://{}{path}", sidecar.address));
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let answer = browser::send(&browser::http1(), request.body(Full::new(Bytes::new()))?).await?;
            ensure!(answer.status == expected, "{path} with {authorization:?} got {}", answer.status);
        }
    }
    for open in ["/healthz", "/metrics"] {
        ensure!(sidecar.get(open).await?.status == 200, "{open}");
    }
    let at = sidecar.address.to_string();
    let output = run(mooring(&["nodes", "--sidecar", &at]))?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("--token-file"), "{said}");
    let output = run(mooring(&["drain", "odoo-1", "--sidecar", &at, "--token-file", file]))?;
    ensure!(output.status.success(), "{output:?}");
    let output = run(mooring(&["drain", "odoo-7", "--sidecar", &at, "--token-file", file]))?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("there are: odoo-1"), "{said}");
    ensure!(!sidecar.process.printed().contains(token), "the token is logged");
    Ok(())
}
