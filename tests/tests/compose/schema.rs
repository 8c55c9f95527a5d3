//! The stack is what the Compose specification calls one, not only what one version of compose takes.

use anyhow::{Result, ensure};
use harness::{root, say, schema::problems, tools};
use serde_json::Value;

/// The stack as compose reads it, but for the variables in it.
pub(crate) fn stack() -> Result<Value> {
    let text = std::fs::read_to_string(root().join("envoy/compose/compose.yaml"))?;
    let mut stack: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text)?;
    // What is merged may merge something itself.
    stack.apply_merge()?;
    stack.apply_merge()?;
    Ok(serde_json::to_value(stack)?)
}

#[test]
fn the_stack_fits_the_specification() -> Result<()> {
    let Some(schema) =
        tools::schemas().map(|folder| folder.join("compose-spec.json")).filter(|it| it.is_file())
    else {
        say("SKIPPED: the specification of compose files; MOORING_SCHEMAS names no folder with it");
        return Ok(());
    };
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema)?)?;
    let mut stack = stack()?;
    let found = problems(&stack, &schema)?;
    ensure!(found.is_empty(), "{}", found.join("\n"));
    // It sees what it is to see.
    stack["services"]["envoy"]["volums"] = Value::Null;
    ensure!(!problems(&stack, &schema)?.is_empty(), "a misspelt word is taken");
    Ok(())
}
