//! Every configuration of Odoo that users are given keeps the database manager closed.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use harness::root;

/// All files below a folder.
fn files(folder: PathBuf) -> Result<Vec<PathBuf>> {
    let (mut found, mut unseen) = (Vec::new(), vec![folder]);
    while let Some(folder) = unseen.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { &mut unseen } else { &mut found }.push(path);
        }
    }
    Ok(found)
}

/// What users copy: files of that name, and the examples in documents.
fn shipped() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let documents =
        [files(root().join("envoy"))?, files(root().join("docs"))?, vec![root().join("README.md")]];
    for path in documents.concat() {
        let name = path.strip_prefix(root())?.display().to_string();
        let is_configuration = path.extension().is_some_and(|extension| extension == "conf");
        if !(is_configuration || name.ends_with(".md")) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let parts: Vec<&str> =
            if is_configuration { vec![&text] } else { text.split("```").skip(1).step_by(2).collect() };
        // The others are lines to add to one.
        let is_whole = |part: &&str| part.contains("[options]") && part.contains("proxy_mode");
        let of_odoo = parts.into_iter().filter(is_whole);
        found.extend(of_odoo.map(|part| (name.clone(), part.to_owned())));
    }
    Ok(found)
}

/// Why the database manager might open, as Odoo's `config.py` reads the file and passlib the password.
fn problem(configuration: &str) -> Option<String> {
    let values = |wanted: &str| -> Vec<&str> {
        let lines = configuration.lines().filter(|line| !line.starts_with([';', '#']));
        let pairs = lines.filter_map(|line| line.split_once('='));
        pairs.filter(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim()).collect()
    };
    let (lists, passwords) = (values("list_db"), values("admin_passwd"));
    if lists != ["False"] {
        return Some(format!("list_db is {lists:?}"));
    }
    let [password] = passwords[..] else { return Some(format!("{} times admin_passwd", passwords.len())) };
    // Sixty-four zero bytes: that somebody knows the password of this hash can be ruled out by looking at it.
    let nobodys = "A".repeat(86);
    match *password.split('$').collect::<Vec<_>>() {
        ["", "pbkdf2-sha512", "1", salt, hash] if !salt.is_empty() && hash == nobodys => None,
        _ => Some(format!("admin_passwd = {password} may let somebody in")),
    }
}

#[test]
fn no_shipped_configuration_opens_the_database_manager() -> Result<()> {
    let shipped = shipped()?;
    for wanted in ["envoy/kubernetes/odoo.conf", "envoy/compose/odoo.conf", "docs/getting-started.md"] {
        ensure!(shipped.iter().any(|(name, _)| name == wanted), "{wanted} is not looked at");
    }
    for (name, text) in shipped {
        ensure!(problem(&text).is_none(), "{name}: {}", problem(&text).unwrap_or_default());
    }
    Ok(())
}

#[test]
fn what_would_open_it_is_found() -> Result<()> {
    let hash = format!("$pbkdf2-sha512$1$bm8${}", "A".repeat(86));
    ensure!(
        problem(&format!("[options]\nlist_db = False\nadmin_passwd = {hash}\n")).is_none(),
        "all is well"
    );
    let another = hash.replacen("AA", "AB", 1);
    for password in ["", "False", "None", "admin", "!", "*", &hash[1..], &another, &format!("{hash} ; none")]
    {
        let text = format!("[options]\nlist_db = False\nadmin_passwd = {password}\n");
        ensure!(problem(&text).is_some(), "{password:?} is taken");
    }
    for lines in [
        format!("admin_passwd = {hash}"),
        format!("list_db = True\nadmin_passwd = {hash}"),
        format!("list_db = False ; off\nadmin_passwd = {hash}"),
        format!("list_db = False\n; admin_passwd = {hash}"),
        format!("list_db = False\nadmin_passwd = {hash}\nadmin_passwd = admin"),
    ] {
        ensure!(problem(&format!("[options]\n{lines}\n")).is_some(), "{lines} is taken");
    }
    Ok(())
}
