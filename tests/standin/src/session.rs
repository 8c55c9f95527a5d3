//! What a session holds, and the shape of session ids.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::Profile;

/// The characters of a session id that soft rotation keeps; Odoo 19 calls it STORED_SESSION_BYTES.
pub(crate) const STABLE_SID_LEN: usize = 42;

/// The name of the one database which every node serves.
pub(crate) const DATABASE: &str = "odoo";

/// The content of a session file, in the order in which Odoo writes its keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Data {
    pub(crate) context: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<f64>,
    pub(crate) db: Option<String>,
    pub(crate) debug: String,
    pub(crate) login: Option<String>,
    pub(crate) uid: Option<i64>,
    pub(crate) session_token: Option<String>,
    #[serde(rename = "_trace", skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<Vec<Trace>>,
    /// Where a softly rotated session went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_sid: Option<String>,
    /// When a softly rotated session stops being accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deletion_time: Option<f64>,
    /// Set on the successor of a rotated session: the files before it are still to be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gc_previous_sessions: Option<bool>,
}

/// A device that used the session (18 and later).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) platform: Option<String>,
    pub(crate) browser: Option<String>,
    pub(crate) ip_address: String,
    pub(crate) first_activity: i64,
    pub(crate) last_activity: i64,
}

impl Data {
    /// What a visitor without a session starts with.
    pub(crate) fn anonymous(profile: Profile) -> Self {
        Data {
            context: json!({"lang": "en_US"}),
            create_time: profile.rotates_softly().then(now),
            db: Some(DATABASE.to_owned()),
            trace: profile.traces_devices().then(Vec::new),
            ..Data::default()
        }
    }
}

/// A session as one request sees it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) sid: String,
    pub(crate) data: Data,
    /// To be saved at the end of the request.
    pub(crate) dirty: bool,
    /// To get a wholly new id at the end of the request (login and logout).
    pub(crate) should_rotate: bool,
}

impl Session {
    /// A new anonymous session, which has no file until something makes it dirty.
    pub(crate) fn anonymous(profile: Profile, sid: String) -> Self {
        Session { sid, data: Data::anonymous(profile), dirty: false, should_rotate: false }
    }

    /// Forgets the user; the id changes when the request ends.
    pub(crate) fn logout(&mut self, profile: Profile) {
        self.data = Data { debug: std::mem::take(&mut self.data.debug), ..Data::anonymous(profile) };
        self.dirty = true;
        self.should_rotate = true;
    }

    /// The logged-in user's login name.
    pub(crate) fn login(&self) -> Option<&str> {
        self.data.uid.and(self.data.login.as_deref())
    }

    /// Notes a device that the session has not seen for an hour.
    pub(crate) fn trace_device(&mut self, platform: Option<&str>, browser: Option<&str>, ip_address: &str) {
        let Some(traces) = &mut self.data.trace else { return };
        let now = now() as i64;
        let known = traces.iter_mut().find(|trace| {
            trace.platform.as_deref() == platform
                && trace.browser.as_deref() == browser
                && trace.ip_address == ip_address
        });
        match known {
            Some(trace) if now - trace.last_activity < 3600 => return,
            Some(trace) => trace.last_activity = now,
            None => traces.push(Trace {
                platform: platform.map(str::to_owned),
                browser: browser.map(str::to_owned),
                ip_address: ip_address.to_owned(),
                first_activity: now,
                last_activity: now,
            }),
        }
        self.dirty = true;
    }
}

/// A session id nobody has had.
pub(crate) fn new_sid(profile: Profile) -> String {
    let mut random = [0; 63];
    rand::fill(&mut random[..]);
    match profile {
        Profile::V16 => hex::encode(random.split_at(20).0),
        Profile::V18 | Profile::V19 => URL_SAFE_NO_PAD.encode(random),
    }
}

/// The id after a soft rotation: the first half stays.
pub(crate) fn next_sid(profile: Profile, sid: &str) -> String {
    let fresh = new_sid(profile);
    format!("{}{}", stable_part(sid), fresh.get(STABLE_SID_LEN..).unwrap_or_default())
}

/// The part of an id that soft rotation keeps.
pub(crate) fn stable_part(sid: &str) -> &str {
    sid.get(..STABLE_SID_LEN).unwrap_or(sid)
}

/// Whether Odoo would look for a file of this name at all. What it refuses can also not leave the
/// sessions directory.
pub(crate) fn is_valid_sid(profile: Profile, sid: &str) -> bool {
    match profile {
        Profile::V16 => sid.len() == 40 && sid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        Profile::V18 | Profile::V19 => {
            sid.len() == 84 && sid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        }
    }
}

/// How far this node's clock is ahead, in seconds.
static CLOCK_OFFSET: OnceLock<i64> = OnceLock::new();

/// Sets this node's clock, once.
pub(crate) fn set_clock(offset: i64) {
    // Nobody sets it twice.
    let _ = CLOCK_OFFSET.set(offset);
}

/// Seconds since 1970 by this node's clock, as Python's `time.time()`.
pub(crate) fn now() -> f64 {
    let offset = CLOCK_OFFSET.get().copied().unwrap_or_default();
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() + offset as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_valid_and_only_in_their_own_version() {
        let (old, new) = (new_sid(Profile::V16), new_sid(Profile::V18));
        assert!(is_valid_sid(Profile::V16, &old) && !is_valid_sid(Profile::V16, &new));
        assert!(is_valid_sid(Profile::V19, &new) && !is_valid_sid(Profile::V19, &old));
        assert!(!is_valid_sid(Profile::V18, &format!("../{}", "a".repeat(81))));
    }

    #[test]
    fn soft_rotation_keeps_the_first_half() {
        let old = new_sid(Profile::V19);
        let new = next_sid(Profile::V19, &old);
        assert!(is_valid_sid(Profile::V19, &new));
        assert_eq!(old[..42], new[..42]);
        assert_ne!(old[42..], new[42..]);
    }
}
