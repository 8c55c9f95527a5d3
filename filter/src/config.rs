//! The plugin's configuration: JSON in the filter's `configuration`.

use core::{net::SocketAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use affinity::{Membership, Node, NodeId, NodeState, membership::MAX_WEIGHT};

use crate::json::{Json, JsonError};

/// What an operator may set. Everything has a safe default but one of `sidecar_cluster` and `nodes`,
/// without which there is nowhere to send a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The Envoy cluster in which the sidecar answers. Without one the filter knows the `nodes`
    /// below and nothing else: it still sticks, by rendezvous hashing.
    pub sidecar_cluster: Option<String>,
    /// The token that the sidecar wants to be shown (its `--token-file`): `sidecar_token`, or what the
    /// environment variable holds that `sidecar_token_env` names. Only the latter stays out of whatever
    /// shows a configuration: Envoy's config dump, custom resources and their status.
    pub sidecar_token: Option<Token>,
    /// How long a request waits for the sidecar to look an owner up, or a response for its claim,
    /// in milliseconds: 1 to 10,000.
    pub sidecar_timeout_ms: u32,
    /// The nodes, until the sidecar tells its own.
    pub nodes: Membership,
    /// How many proxies in front of Envoy are believed about the client's address: 0 to 32. At 0 the
    /// client is whom Envoy takes for it, which its own `xff_num_trusted_hops` governs.
    pub trusted_proxies: u8,
    /// How many leading bits of an IPv6 address name a client: 1 to 128.
    pub ipv6_prefix: u8,
    /// How many sessions each VM remembers: 16 to 10,000,000, about 100 bytes each.
    pub table_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sidecar_cluster: None,
            sidecar_token: None,
            sidecar_timeout_ms: 1_000,
            nodes: Membership::default(),
            trusted_proxies: 0,
            ipv6_prefix: 64,
            table_entries: 65_536,
        }
    }
}

/// Why a configuration is refused: the field's path and what was expected there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON, or no UTF-8.
    #[error("the configuration is no JSON: {0}")]
    NoJson(#[from] JsonError),
    /// It is something else than an object.
    #[error("expected a JSON object with `sidecar_cluster` or `nodes`, found {0}")]
    NoObject(&'static str),
    /// A field has a wrong name, type or value.
    #[error("{path}: {problem}")]
    Field {
        /// Where, such as `nodes[1].http`.
        path: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// A secret that the sidecar shares.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl core::fmt::Debug for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// The fewest characters, as the sidecar has it.
    const SHORTEST: usize = 16;

    fn new(text: String) -> Option<Self> {
        let good = text.len() >= Self::SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then_some(Self(text))
    }

    /// What to send in an `authorization` header.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

const KNOWN: [&str; 8] = [
    "sidecar_cluster",
    "sidecar_token",
    "sidecar_token_env",
    "sidecar_timeout_ms",
    "nodes",
    "trusted_proxies",
    "ipv6_prefix",
    "table_entries",
];

fn refuse<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Field { path: path.into(), problem: problem.into() })
}

impl Config {
    /// Reads and checks a configuration. `environment` tells the value of a variable.
    ///
    /// # Errors
    /// If it is empty, no JSON, has an unknown field, a wrong type, a value out of range, names neither a
    /// sidecar nor nodes, or a variable that has no token.
    pub fn parse(text: &[u8], environment: impl FnOnce(&str) -> Option<String>) -> Result<Self, ConfigError> {
        if text.trim_ascii().is_empty() {
            return Err(ConfigError::NoObject("nothing"));
        }
        let text =
            core::str::from_utf8(text).map_err(|_| ConfigError::NoObject("bytes that are no UTF-8"))?;
        let value = text.parse()?;
        let Json::Object(object) = value else { return Err(ConfigError::NoObject(kind(&value))) };

        let default = Self::default();
        let fields = Fields::new(String::new(), &object, &KNOWN)?;
        let config = Self {
            sidecar_cluster: fields.text("sidecar_cluster")?,
            sidecar_token: token(
                fields.text("sidecar_token")?,
                fields.text("sidecar_token_env")?,
                environment,
            )?,
            sidecar_timeout_ms: fields.number(
                "sidecar_timeout_ms",
                1..=10_000,
                default.sidecar_timeout_ms,
            )?,
            nodes: nodes(fields.list("nodes")?)?,
            trusted_proxies: fields.number("trusted_proxies", 0..=32, default.trusted_proxies)?,
            ipv6_prefix: fields.number("ipv6_prefix", 1..=128, default.ipv6_prefix)?,
            table_entries: fields.number("table_entries", 16..=10_000_000, default.table_entries)?,
        };
        match &config.sidecar_cluster {
            Some(cluster) if cluster.trim().is_empty() => {
                refuse("sidecar_cluster", "empty, expected the name of an Envoy cluster")
            }
            None if config.nodes.nodes().is_empty() => {
                refuse("nodes", "empty, and no sidecar_cluster: expected at least one of the two")
            }
            _ => Ok(config),
        }
    }

    /// `sidecar_timeout_ms`.
    pub fn sidecar_timeout(&self) -> Duration {
        Duration::from_millis(self.sidecar_timeout_ms.into())
    }
}

/// The token itself, or that of a variable. A refusal does not show it.
fn token(
    text: Option<String>,
    variable: Option<String>,
    environment: impl FnOnce(&str) -> Option<String>,
) -> Result<Option<Token>, ConfigError> {
    let (field, text) = match (text, variable) {
        (None, None) => return Ok(None),
        (Some(text), None) => ("sidecar_token", text),
        (None, Some(name)) => ("sidecar_token_env", value_of(&name, environment)?),
        (Some(_), Some(_)) => {
            return refuse("sidecar_token_env", "expected this or sidecar_token, found both");
        }
    };
    Token::new(text).map(Some).map_or_else(
        || refuse(field, "expected 16 or more characters without spaces, as in the sidecar's file"),
        Ok,
    )
}

/// The first line of a variable, as the sidecar reads its file: a Secret made from that file ends with a line
/// feed.
fn value_of(name: &str, environment: impl FnOnce(&str) -> Option<String>) -> Result<String, ConfigError> {
    let value = environment(name).unwrap_or_default();
    match value.lines().next().unwrap_or_default().trim() {
        "" => refuse(
            "sidecar_token_env",
            format!(
                "no environment variable {name:?}, or an empty one: expected one that holds the token, where \
                 Envoy runs, and its name among the VM's host_env_keys"
            ),
        ),
        line => Ok(line.to_owned()),
    }
}

fn nodes(list: &[Json]) -> Result<Membership, ConfigError> {
    let nodes: Result<Vec<Node>, ConfigError> =
        list.iter().enumerate().map(|(place, value)| node(format!("nodes[{place}]"), value)).collect();
    Membership::new(nodes?).or_else(|error| refuse("nodes", error.to_string()))
}

fn node(path: String, value: &Json) -> Result<Node, ConfigError> {
    let Json::Object(object) = value else {
        return refuse(path, format!("expected an object with id and http, found {}", kind(value)));
    };
    let fields = Fields::new(path, object, &["id", "http", "gevent", "weight"])?;
    Ok(Node {
        id: match fields.text("id")?.map(NodeId::new) {
            Some(Ok(id)) => id,
            Some(Err(error)) => return refuse(fields.at("id"), error.to_string()),
            None => return refuse(fields.at("id"), "missing, expected the node's name"),
        },
        http: match fields.address("http")? {
            Some(address) => address,
            None => return refuse(fields.at("http"), "missing, expected ip:port"),
        },
        gevent: fields.address("gevent")?,
        weight: fields.number("weight", 1..=MAX_WEIGHT.into(), 1)?,
        state: NodeState::Active,
        full: false,
        carries: false,
    })
}

/// The fields of one object.
struct Fields<'a> {
    path: String,
    object: &'a [(String, Json)],
}

impl<'a> Fields<'a> {
    fn new(path: String, object: &'a [(String, Json)], known: &[&str]) -> Result<Self, ConfigError> {
        let fields = Self { path, object };
        match object.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(fields),
            Some((name, _)) => {
                refuse(fields.at(name), format!("unknown field, expected one of {}", known.join(", ")))
            }
        }
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field's value; `null` is as good as none.
    fn get(&self, name: &str) -> Option<&'a Json> {
        let (_, value) = self.object.iter().find(|(other, _)| other == name)?;
        Some(value).filter(|value| **value != Json::Null)
    }

    fn text(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text.clone())),
            Some(other) => refuse(self.at(name), format!("expected a text, found {}", kind(other))),
        }
    }

    fn address(&self, name: &str) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        SocketAddr::from_str(&text).map(Some).or_else(|_| {
            refuse(self.at(name), format!("expected ip:port, an address and no host name, found {text:?}"))
        })
    }

    /// A whole number within `range`, or the default, which has the number's type.
    fn number<T: TryFrom<u64>>(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        default: T,
    ) -> Result<T, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = self.whole_number(name, value, range)?;
        // Every range lies within its type.
        Ok(T::try_from(number).unwrap_or(default))
    }

    fn whole_number(&self, name: &str, value: &Json, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let found = match value {
            Json::Whole(number) if range.contains(number) => return Ok(*number),
            Json::Whole(number) => number.to_string(),
            Json::Number(number) => number.clone(),
            other => kind(other).to_owned(),
        };
        let (low, high) = range.into_inner();
        refuse(self.at(name), format!("expected a whole number from {low} to {high}, found {found}"))
    }

    fn list(&self, name: &str) -> Result<&'a [Json], ConfigError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Json::List(list)) => Ok(list),
            Some(other) => refuse(self.at(name), format!("expected a list, found {}", kind(other))),
        }
    }
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Whole(_) | Json::Number(_) => "a number",
        Json::Text(_) => "a text",
        Json::List(_) => "a list",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Config, ConfigError> {
        Config::parse(json.as_bytes(), |name| {
            let value = match name {
                "TOKEN" => "0123456789abcdef\nan older one\n",
                "EMPTY" => "\n",
                "SHORT" => "s3cret",
                _ => return None,
            };
            Some(value.to_owned())
        })
    }

    fn refused(json: &str) -> String {
        parse(json).expect_err(json).to_string()
    }

    #[test]
    fn little_is_enough() {
        let config = parse(r#"{"sidecar_cluster": "mooring"}"#).unwrap();
        assert_eq!(config, Config { sidecar_cluster: Some("mooring".into()), ..Config::default() });
        let config = parse(r#"{"nodes": [{"id": "odoo-1", "http": "127.0.0.1:8069"}]}"#).unwrap();
        assert_eq!(config.nodes.nodes().len(), 1);
    }

    #[test]
    fn a_token_is_shown_to_the_sidecar_alone() {
        for field in [r#""sidecar_token": "0123456789abcdef""#, r#""sidecar_token_env": "TOKEN""#] {
            let config = parse(&format!(r#"{{"sidecar_cluster": "mooring", {field}}}"#)).unwrap();
            assert!(!format!("{config:?}").contains("0123"));
            assert_eq!(config.sidecar_token.unwrap().header(), "Bearer 0123456789abcdef", "{field}");
        }
        for field in [r#""sidecar_token": "s3cret""#, r#""sidecar_token_env": "SHORT""#] {
            let message = refused(&format!(r#"{{"sidecar_cluster": "x", {field}}}"#));
            assert!(!message.contains("s3cret"), "{message}");
        }
    }

    #[test]
    fn refusals_name_the_field_and_what_was_expected() {
        for (json, parts) in [
            ("", &["expected a JSON object", "found nothing"][..]),
            ("  \n", &["found nothing"]),
            ("nodes: []", &["no JSON", "line 1, column 1", "expected a value"]),
            ("[]", &["expected a JSON object"]),
            (r#"{"sidecar_cluster": "x"} {}"#, &["no JSON", "line 1, column 26"]),
            (r#"{"ipv6_prefix": 64, "ipv6_prefix": 48}"#, &["already given"]),
            ("{}", &["nodes", "sidecar_cluster", "expected at least one"]),
            (r#"{"nodes": []}"#, &["nodes: empty"]),
            (r#"{"sidecar_cluster": ""}"#, &["sidecar_cluster: ", "expected the name"]),
            (r#"{"sidecar_cluster": 5}"#, &["sidecar_cluster: expected a text, found a number"]),
            (r#"{"sidecar_cluster": "x", "sidecar_token": "short"}"#, &["sidecar_token: expected 16"]),
            (
                r#"{"sidecar_cluster": "x", "sidecar_token_env": "SHORT"}"#,
                &["sidecar_token_env: expected 16"],
            ),
            (
                r#"{"sidecar_cluster": "x", "sidecar_token_env": "ABSENT"}"#,
                &["sidecar_token_env: no environment variable \"ABSENT\"", "host_env_keys"],
            ),
            (r#"{"sidecar_cluster": "x", "sidecar_token_env": "EMPTY"}"#, &["sidecar_token_env: ", "empty"]),
            (r#"{"sidecar_cluster": "x", "sidecar_token_env": ""}"#, &["sidecar_token_env: no environment"]),
            (r#"{"sidecar_cluster": "x", "sidecar_token_env": 5}"#, &["sidecar_token_env: expected a text"]),
            (
                r#"{"sidecar_cluster": "x", "sidecar_token": "0123456789abcdef", "sidecar_token_env": "TOKEN"}"#,
                &["sidecar_token_env: expected this or sidecar_token"],
            ),
            (r#"{"sidecar": "x"}"#, &["sidecar: unknown field, expected one of sidecar_cluster"]),
            (
                r#"{"sidecar_cluster": "x", "trusted_proxies": -1}"#,
                &["trusted_proxies: ", "0 to 32, found -1"],
            ),
            (
                r#"{"sidecar_cluster": "x", "trusted_proxies": 33}"#,
                &["trusted_proxies: ", "0 to 32, found 33"],
            ),
            (r#"{"sidecar_cluster": "x", "ipv6_prefix": 0}"#, &["ipv6_prefix: ", "1 to 128"]),
            (r#"{"sidecar_cluster": "x", "ipv6_prefix": "64"}"#, &["ipv6_prefix: ", "found a text"]),
            (r#"{"sidecar_cluster": "x", "ipv6_prefix": 6.4}"#, &["ipv6_prefix: ", "found 6.4"]),
            (r#"{"sidecar_cluster": "x", "sidecar_timeout_ms": 0}"#, &["sidecar_timeout_ms: ", "1 to 10000"]),
            (r#"{"sidecar_cluster": "x", "table_entries": 1}"#, &["table_entries: ", "16 to 10000000"]),
            (r#"{"nodes": {}}"#, &["nodes: expected a list, found an object"]),
            (r#"{"nodes": ["a"]}"#, &["nodes[0]: expected an object"]),
            (
                r#"{"nodes": [{"id": "a", "http": "odoo:8069"}]}"#,
                &["nodes[0].http: expected ip:port", "odoo"],
            ),
            (r#"{"nodes": [{"id": "a b", "http": "127.0.0.1:1"}]}"#, &["nodes[0].id: ", "characters"]),
            (r#"{"nodes": [{"id": "a", "http": "127.0.0.1:1", "port": 1}]}"#, &["nodes[0].port: unknown"]),
            (r#"{"nodes": [{"http": "127.0.0.1:1"}]}"#, &["nodes[0].id: missing"]),
            (
                r#"{"nodes": [{"id": "a", "http": "127.0.0.1:1", "weight": 0}]}"#,
                &["nodes[0].weight: ", "1 to 1000"],
            ),
            (
                r#"{"nodes": [{"id": "a", "http": "127.0.0.1:1"}, {"id": "a", "http": "127.0.0.1:2"}]}"#,
                &["nodes: ", "named twice"],
            ),
        ] {
            let message = refused(json);
            for part in parts {
                assert!(message.contains(part), "{json}: {message:?} lacks {part:?}");
            }
        }
    }
}
