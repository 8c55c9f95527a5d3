//! The session id in Odoo's cookies, as raw bytes: a header may hold anything.

/// The name of Odoo's session cookie, the same in every version.
pub const SESSION_COOKIE: &[u8] = b"session_id";

/// The session id in the value of a `Cookie` request header.
///
/// As Odoo does (seen on 18 and 19), the first `session_id` pair wins and a quoted value is taken
/// without its quotes. An empty value is no session.
///
/// ```
/// assert_eq!(affinity::cookie::session_id(b"tz=UTC; session_id=\"abc\""), Some(&b"abc"[..]));
/// ```
pub fn session_id(cookie_header: &[u8]) -> Option<&[u8]> {
    cookie_header.split(|&byte| byte == b';').find_map(session_pair).filter(|sid| !sid.is_empty())
}

/// The session id that the value of one `Set-Cookie` response header sets, if it sets one.
///
/// A deletion (an empty value) is none.
pub fn set_session_id(set_cookie_header: &[u8]) -> Option<&[u8]> {
    let pair = set_cookie_header.split(|&byte| byte == b';').next()?;
    session_pair(pair).filter(|sid| !sid.is_empty())
}

fn session_pair(pair: &[u8]) -> Option<&[u8]> {
    let rest = pair.trim_ascii_start().strip_prefix(SESSION_COOKIE)?;
    let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_session_among_other_cookies() {
        let cases: &[(&[u8], Option<&[u8]>)] = &[
            (b"session_id=abc", Some(b"abc")),
            (b"frontend_lang=en_US; session_id=abc; tz=UTC", Some(b"abc")),
            (b"tz=UTC;session_id=abc", Some(b"abc")),
            (b"  session_id = abc  ", Some(b"abc")),
            (b"session_id=\"abc\"", Some(b"abc")),
            (b"session_id=\"abc", Some(b"\"abc")),
            (b"session_id=-abc", Some(b"-abc")),
            (b"session_id=a=b", Some(b"a=b")),
            (b"session_id=first; session_id=second", Some(b"first")),
            (b"xsession_id=no", None),
            (b"session_idx=no", None),
            (b"Session_Id=no", None),
            (b"session_id", None),
            (b"session_id=", None),
            (b"session_id=\"\"", None),
            (b"session_id=; session_id=second", None),
            (b"", None),
            (b";;;=;", None),
            (b"session_id=\xff\xfe", Some(b"\xff\xfe")),
            (b"\xff=\xff; session_id=abc", Some(b"abc")),
        ];
        for (header, expected) in cases {
            assert_eq!(session_id(header), *expected, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn survives_hostile_sizes() {
        let long = [b"session_id=".as_slice(), &vec![b'x'; 60_000]].concat();
        assert_eq!(session_id(&long).map(<[u8]>::len), Some(60_000));
        let many = [b"a=b; ".repeat(1_000).as_slice(), b"session_id=abc"].concat();
        assert_eq!(session_id(&many), Some(&b"abc"[..]));
    }

    #[test]
    fn reads_what_a_response_sets() {
        assert_eq!(set_session_id(b"session_id=abc; HttpOnly; Path=/"), Some(&b"abc"[..]));
        assert_eq!(set_session_id(b"tz=UTC; session_id=abc"), None);
        assert_eq!(set_session_id(b"session_id=; Max-Age=0"), None);
    }
}
