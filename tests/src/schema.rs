//! What JSON schemas say of objects.

use anyhow::{Result, anyhow};
use jsonschema::Draft;
use serde_json::Value;

/// What is wrong with an object, by its schema. Schemas that do not say which draft they follow are those of
/// Kubernetes' custom resources: OpenAPI's, which are nearest to draft 4.
///
/// # Errors
/// If the schema is none.
pub fn problems(object: &Value, schema: &Value) -> Result<Vec<String>> {
    let validator = match schema.get("$schema") {
        Some(_) => jsonschema::validator_for(schema),
        None => jsonschema::options().with_draft(Draft::Draft4).build(schema),
    };
    let validator = validator.map_err(|error| anyhow!("{error}"))?;
    Ok(validator.iter_errors(object).map(|error| format!("{}: {error}", error.instance_path())).collect())
}
