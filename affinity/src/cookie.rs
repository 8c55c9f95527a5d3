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

/// The session id that a response leaves its browser with, from the values of its `Set-Cookie` headers in
/// order; none if they say nothing of it, or delete it.
///
/// The last one counts: Odoo 19 may send the cookie twice, and what deletes it (an empty value, `Max-Age=0`)
/// takes back what was set before.
pub fn set_session_id<T: AsRef<[u8]>>(set_cookie_headers: &[T]) -> Option<&[u8]> {
    let (sid, attributes) = set_cookie_headers.iter().rev().find_map(|header| {
        let mut parts = header.as_ref().split(|&byte| byte == b';');
        Some((parts.next().and_then(session_pair)?, parts))
    })?;
    Some(sid).filter(|sid| !sid.is_empty() && !attributes.into_iter().any(is_deletion))
}

/// Whether a cookie's attribute has browsers forget it: `Max-Age` of 0 or less.
fn is_deletion(attribute: &[u8]) -> bool {
    let mut sides = attribute.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
    let is_max_age = sides.next().is_some_and(|name| name.eq_ignore_ascii_case(b"max-age"));
    let seconds = sides.next().filter(|_| is_max_age).unwrap_or_default();
    match seconds {
        [b'-', digits @ ..] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        digits => !digits.is_empty() && digits.iter().all(|&digit| digit == b'0'),
    }
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
        let cases: &[(&[&str], Option<&str>)] = &[
            (&["session_id=abc; HttpOnly; Path=/"], Some("abc")),
            (&["tz=UTC; session_id=abc"], None),
            (&["session_id=; Max-Age=0"], None),
            (&["session_id=abc; Max-Age=604800", "tz=UTC"], Some("abc")),
            (&["session_id=abc", "session_id=def"], Some("def")),
            (&["session_id=abc", "session_id=; Path=/"], None),
            (&["session_id=abc", "session_id=abc; max-age = 0"], None),
            (&["session_id=abc; Max-Age=-1"], None),
            (&["session_id=abc; Max-Age=000"], None),
            (&["session_id=; Max-Age=0", "session_id=abc"], Some("abc")),
            (&["session_id=abc; Max-Age=; Max-Age; Max-Age=-; Max-Age=x0"], Some("abc")),
            (&["session_id=abc; Expires=Max-Age=0"], Some("abc")),
            (&[], None),
        ];
        for (headers, expected) in cases {
            assert_eq!(set_session_id(headers), expected.map(str::as_bytes), "{headers:?}");
        }
    }
}
