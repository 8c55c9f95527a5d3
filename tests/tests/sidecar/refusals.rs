//! What `mooring serve` does not start with: it names the option and says what would do.

use super::*;

/// Starts `mooring serve`, which must refuse; returns what it says.
fn refusal(arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let mut command = mooring(&["serve"]);
    command.args(arguments).envs(variables.iter().copied());
    let output = run(command)?;
    ensure!(!output.status.success(), "{arguments:?} {variables:?} was not refused");
    ensure!(output.stdout.is_empty(), "standard output: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn nodes_that_cannot_be_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_str().context("no path")?;
    let cases: [(&[&str], &[&str]); 12] = [
        (&[], &["--node: missing", "--node-id", "--store"]),
        (&["--node", ""], &["--node <NODE>", "expected ID=HOST:PORT[,gevent=HOST:PORT][,weight=N]"]),
        (&["--node", "odoo-1"], &["--node <NODE>", "expected ID=HOST:PORT"]),
        (&["--node", "odoo/1=127.0.0.1:8069"], &["--node <NODE>", "1 to 64 of the characters"]),
        (&["--node", "a=127.0.0.1"], &["--node <NODE>", "expected HOST:PORT, found \"127.0.0.1\""]),
        (&["--node", "a=::1:8069"], &["--node <NODE>", "expected HOST:PORT"]),
        (&["--node", "a=h:8069,gevent=8072"], &["--node <NODE>", "gevent: expected HOST:PORT"]),
        (&["--node", "a=h:8069,weight=0"], &["--node <NODE>", "weight: expected 1 to 1000"]),
        (&["--node", "a=h:8069,colour=red"], &["--node <NODE>", "\"colour=red\"", "gevent or weight"]),
        (&["--node", "a=127.0.0.1:1", "--node", "a=127.0.0.1:2"], &["--node: node a is named twice"]),
        (&["--node", "a=127.0.0.1:1 a=127.0.0.1:2"], &["--node: node a is named twice"]),
        (
            &["--node", "a=127.0.0.1:1", "--node", "b=127.0.0.1:1"],
            &["--node", "a and b have the same address"],
        ),
    ];
    for (arguments, expected) in cases {
        let said = refusal(&[&["--state-dir", state, "--listen", "127.0.0.1:0"], arguments].concat(), &[])?;
        ensure!(expected.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
    ensure!(!folder.path().join("directory.redb").exists(), "a refused start leaves a store behind");
    let said = refusal(&["--state-dir", state], &[("MOORING_NODES", "a=127.0.0.1:1 b")])?;
    ensure!(said.contains("'b'") && said.contains("expected ID=HOST:PORT"), "{said}");
    Ok(())
}

#[test]
fn addresses_that_cannot_be_listened_on_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_str().context("no path")?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let below_a_file = format!("unix:{state}/directory.redb/mooring.sock");
    let cases = [
        ("0.0.0.0:0", "must be a loopback address or unix:PATH"),
        ("[::]:0", "must be a loopback address or unix:PATH"),
        ("192.0.2.1:7070", "must be a loopback address or unix:PATH"),
        ("localhost:7070", "expected IP:PORT such as 127.0.0.1:7070"),
        ("7070", "expected IP:PORT such as 127.0.0.1:7070"),
        ("unix:", "unix: needs a path"),
        (taken.as_str(), "Address already in use"),
        (below_a_file.as_str(), "Not a directory"),
    ];
    for (listen, expected) in cases {
        let others = ["--node", "a=127.0.0.1:1", "--state-dir", state];
        for said in [
            refusal(&[&others[..], &["--listen", listen]].concat(), &[])?,
            refusal(&others, &[("MOORING_LISTEN", listen)])?,
            // One bad address of two is enough.
            refusal(&others, &[("MOORING_LISTEN", &format!("127.0.0.1:0 {listen}"))])?,
        ] {
            ensure!(said.contains("--listen") && said.contains(expected), "{listen}: {said}");
            ensure!(said.contains(listen.trim_start_matches("unix:")), "which address? {said}");
        }
    }
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "")?;
    let below = file.join("state");
    let below = below.to_str().context("no path")?;
    let said = refusal(&["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0", "--state-dir", below], &[])?;
    ensure!(said.contains("--state-dir") && said.contains(below), "{said}");
    let said =
        refusal(&["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0"], &[("MOORING_STATE_DIR", below)])?;
    ensure!(said.contains("--state-dir") && said.contains(below), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_second_sidecar_in_the_same_folder_is_refused() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    let state = sidecar.folder.path().join("state");
    let state = state.to_str().context("no path")?;
    let said = refusal(&["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0", "--state-dir", state], &[])?;
    let expected = ["--state-dir", state, "one sidecar serves all Odoo servers of a host"];
    ensure!(expected.iter().all(|part| said.contains(part)), "{said}");
    ensure!(sidecar.claim("s", "a", 0).await?.granted, "the first still works");
    Ok(())
}

#[test]
fn other_options_are_checked_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_str().context("no path")?;
    let cases = [
        ("--claim-lifetime-seconds", "MOORING_CLAIM_LIFETIME_SECONDS", "59", "60"),
        ("--probe-interval-ms", "MOORING_PROBE_INTERVAL_MS", "0", "50"),
        ("--probe-timeout-ms", "MOORING_PROBE_TIMEOUT_MS", "soon", "invalid digit"),
        ("--down-after", "MOORING_DOWN_AFTER", "0", "1..=100"),
        ("--up-after", "MOORING_UP_AFTER", "101", "1..=100"),
        ("--log-format", "MOORING_LOG_FORMAT", "xml", "human, json"),
    ];
    for (option, variable, value, expected) in cases {
        let others = ["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0", "--state-dir", state];
        for said in [
            refusal(&[&others[..], &[option, value]].concat(), &[])?,
            refusal(&others, &[(variable, value)])?,
        ] {
            ensure!([option, value, expected].iter().all(|part| said.contains(part)), "{said}");
        }
    }
    Ok(())
}

#[test]
fn a_store_that_is_none_is_refused_and_its_password_is_not_shown() -> Result<()> {
    for store in [
        "postgres://mooring:s3cret@127.0.0.1/0",
        "rediss:/mooring:s3cret@127.0.0.1",
        "redis://mooring:s3cret@127.0.0.1:port/0",
        "redis://mooring:s3cret@",
        "s3cret",
        "",
    ] {
        let others = ["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0"];
        for said in [
            refusal(&[&others[..], &["--store", store]].concat(), &[])?,
            refusal(&others, &[("MOORING_STORE", store)])?,
        ] {
            ensure!(said.contains("--store"), "{store}: {said}");
            ensure!(said.contains("expected embedded, redis://HOST:PORT/DB"), "{store}: {said}");
            ensure!(!said.contains("s3cret"), "{said}");
        }
    }
    Ok(())
}

#[test]
fn directories_that_cannot_be_replicated_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let state = path("state");
    std::fs::create_dir(path("openid"))?;
    std::os::unix::fs::symlink(path("openid"), path("same"))?;
    std::fs::write(path("file"), "")?;
    let of = |name: &str, mode: &str| format!("{}={mode}", path(name));
    let cases: [(&[String], &str); 6] = [
        (&["openid=add".to_owned()], "expected PATH=MODE with a MODE of newest or add"),
        (&[of("openid", "oldest")], "expected PATH=MODE with a MODE of newest or add"),
        (&[of("open{id}", "add")], "the directory's name must be 1 to 64 of the characters"),
        (&[of("openid", "add"), of("openid", "newest")], "it is named twice"),
        (&[of("openid", "add"), of("same", "add")], "it is named twice"),
        (&[of("file", "add")], "Not a directory"),
    ];
    for (specs, expected) in cases {
        let mut arguments = vec!["--node", "a=127.0.0.1:1", "--listen", "127.0.0.1:0", "--state-dir", &state];
        specs.iter().for_each(|spec| arguments.extend(["--replicate", spec]));
        let said = refusal(&arguments, &[])?;
        ensure!(said.contains("--replicate") && said.contains(expected), "{specs:?}: {said}");
    }
    let directory = of("openid", "add");
    let said = refusal(&["--store", "redis://127.0.0.1:1/0", "--replicate", &directory], &[])?;
    ensure!(said.contains("--secret-file: missing"), "{said}");
    let twice = format!("{directory} {directory}");
    let said = refusal(&["--node", "a=127.0.0.1:1"], &[("MOORING_REPLICATE", &twice)])?;
    ensure!(said.contains("--replicate") && said.contains("it is named twice"), "{said}");
    Ok(())
}
