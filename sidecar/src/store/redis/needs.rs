//! Whether Redis does what is needed of it: an ACL that is too narrow, memory that is full or a replica answers
//! look-ups, and leaves undone what matters.

use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, aio::ConnectionLike};
use tokio::sync::Mutex;

use super::{
    super::StoreError,
    keys::Keys,
    link::{Connection, Link, said},
    scripts::TRY,
};

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(2);
/// What an ACL user needs beside its keys, as docs/redis.md has it.
const RIGHTS: &str = "&* -@all +evalsha +eval +script|load +hmget +hset +hget +hgetall +hdel +hexists +del +pexpire \
                      +pttl +incr +zadd +zrem +zrangebyscore +xadd +xread +xrevrange +set +get +sadd +srem +smembers \
                      +time +scan +info +ping +select +cluster|slots +cluster|nodes +cluster|shards";

/// A command that was refused, and why.
type Refusal = (String, String);

/// What was refused, or why that cannot be known, and when.
type Found = (Instant, Result<Vec<Refusal>, String>);

/// What was found last.
pub(super) struct Needs {
    acl: String,
    found: Mutex<Option<Found>>,
}

impl Needs {
    pub(super) fn new(prefix: &str, user: Option<&str>) -> Self {
        let acl = format!("user {} on ~{prefix}:* {RIGHTS}", user.unwrap_or("default"));
        Self { acl, found: Mutex::default() }
    }

    /// Whether all that is needed is done. It is tried, unless that was done a moment ago.
    ///
    /// # Errors
    /// If some of it is refused, or Redis does not answer.
    pub(super) async fn check(&self, link: &std::sync::Arc<Link>, keys: &Keys) -> Result<(), StoreError> {
        let mut found = self.found.lock().await;
        if found.as_ref().is_none_or(|(when, _)| when.elapsed() > HOLDS) {
            let tried = link.run(async |connection| try_all(connection, keys).await).await;
            // Also that it does not answer: others who ask meanwhile need not wait in vain one by one.
            *found = Some((Instant::now(), tried.map_err(|error| said(&error))));
        }
        match found.as_ref() {
            Some((_, Ok(refusals))) if !refusals.is_empty() => Err(self.refused(refusals)),
            Some((_, Err(problem))) => Err(StoreError::Unreachable(problem.clone())),
            _ => Ok(()),
        }
    }

    fn refused(&self, refusals: &[Refusal]) -> StoreError {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (command, reason) in refusals {
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, commands)) => commands.push(command),
                None => reasons.push((reason, vec![command])),
            }
        }
        let text = |(reason, commands): &(&str, Vec<&str>)| format!("{} ({reason})", commands.join(", "));
        let problem = reasons.iter().map(text).collect::<Vec<_>>().join("; ");
        let is_acl = problem.contains("permissions") || problem.contains("can't run this command");
        let remedy = if is_acl {
            format!("Redis's user needs what docs/redis.md says: {}", self.acl)
        } else if problem.contains("unknown command") {
            "Redis must know these commands by their names: was one renamed, or is it no Redis?".to_owned()
        } else {
            "Redis must take writes: look at its maxmemory, its disk, and whether it is a replica".to_owned()
        };
        StoreError::Refused { problem, remedy }
    }
}

/// What Redis says to a command that it understood and does not carry out; none for other errors.
pub(super) fn refused(error: &RedisError) -> Option<String> {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::NoPerm | ServerErrorKind::ResponseError | ServerErrorKind::ReadOnly
        )
    );
    let by_code = matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS"));
    (by_kind || by_code).then(|| {
        let code =
            error.code().filter(|code| *code != "ERR").map(|code| format!("{code} ")).unwrap_or_default();
        format!("{code}{}", error.detail().unwrap_or_default())
    })
}

/// Tries everything, and returns what was refused.
async fn try_all(connection: &mut Connection, keys: &Keys) -> RedisResult<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let text = "return 1";
    note(&mut refusals, "SCRIPT LOAD", query(connection, redis::cmd("SCRIPT").arg("LOAD").arg(text)).await)?;
    let mut script = TRY.prepare_invoke();
    for key in keys.tries() {
        script.key(key);
    }
    let tried: RedisResult<Vec<Refusal>> = script.invoke_async(connection).await;
    match tried {
        Ok(found) => {
            refusals.extend(found.into_iter().map(|(command, reason)| (command, shortened(&reason))))
        }
        Err(error) => note(&mut refusals, "EVALSHA", Err(error))?,
    }
    note(&mut refusals, "INFO", query(connection, redis::cmd("INFO").arg("server")).await)?;
    let mut read = redis::cmd("XREAD");
    read.arg("COUNT").arg(1).arg("STREAMS").arg(&keys.changes.entries).arg("$");
    note(&mut refusals, "XREAD", query(connection, &read).await)?;
    if let Connection::Server(_) = connection {
        let scan = query(connection, redis::cmd("SCAN").arg(0).arg("COUNT").arg(1)).await;
        note(&mut refusals, "SCAN", scan)?;
    }
    Ok(refusals)
}

async fn query(connection: &mut Connection, command: &redis::Cmd) -> RedisResult<()> {
    connection.req_packed_command(command).await.and_then(redis::Value::extract_error).map(drop)
}

/// Notes what was refused; what else went wrong stays an error.
fn note(refusals: &mut Vec<Refusal>, command: &str, result: RedisResult<()>) -> RedisResult<()> {
    match result.as_ref().err().and_then(refused) {
        Some(reason) => {
            refusals.push((command.to_owned(), shortened(&reason)));
            Ok(())
        }
        None => result,
    }
}

/// Without what Redis says of the script that asked, or repeats of what it was asked.
fn shortened(reason: &str) -> String {
    let reason = [" script: ", ", with args"]
        .iter()
        .fold(reason, |reason, end| reason.split_once(end).map_or(reason, |(reason, _)| reason));
    reason.strip_prefix("ERR ").unwrap_or(reason).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_are_those_of_the_docs() {
        let docs = include_str!("../../../../docs/redis.md");
        assert!(docs.contains(&format!("~mooring:* {RIGHTS}\n")), "docs/redis.md has another ACL line");
    }

    #[test]
    fn what_is_refused_is_named_once() {
        let refusal = |command: &str, reason: &str| (command.to_owned(), reason.to_owned());
        let needs = Needs::new("odoo", Some("sidecar"));
        let error = needs.refused(&[
            refusal("TIME", "can't run this command"),
            refusal("XADD", "can't run this command"),
            refusal("INFO", "unknown"),
        ]);
        let StoreError::Refused { problem, remedy } = error else { panic!("{error}") };
        assert_eq!(problem, "TIME, XADD (can't run this command); INFO (unknown)");
        assert!(remedy.contains("user sidecar on ~odoo:* &* -@all +evalsha"), "{remedy}");
        let StoreError::Refused { remedy, .. } = needs.refused(&[refusal("SET", "OOM")]) else { panic!() };
        assert!(remedy.contains("maxmemory"), "{remedy}");
    }
}
