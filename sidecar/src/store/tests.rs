//! One body of tests over every store.

use super::*;

fn key(name: &str) -> SessionKey {
    SessionKey::of_session_id(name.as_bytes())
}
