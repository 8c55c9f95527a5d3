//! The Odoo module's own tests, in Python.

use std::process::Command;

use anyhow::{Result, ensure};
use harness::root;

#[test]
fn the_module_s_python_tests() -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "unittest", "discover", "-s", "tests", "-t", "."]).current_dir(root().join("addon"));
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && text.contains("Ran "), "{text}");
    println!("{}", text.lines().rev().take(3).collect::<Vec<_>>().join(" "));
    Ok(())
}
