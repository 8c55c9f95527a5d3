//! What others wrote, for a terminal: names and problems come out of Redis, from nodes and from files, and a
//! terminal obeys control characters.

/// The longest text that is shown, in characters.
const LONGEST: usize = 2_000;

/// Whether a character shows itself and does nothing.
fn is_plain_char(letter: char) -> bool {
    // Those that are quoted in Rust's own way are plain; marks that join others are not worth an exception.
    matches!(letter, '\'' | '"' | '\\') || letter.escape_debug().len() == 1
}

/// Whether a text has no character that a terminal would obey, or that hides others.
pub(crate) fn is_plain(text: &str) -> bool {
    text.chars().all(is_plain_char)
}

/// A text in one line, with such characters as `\u{1b}`.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for (number, letter) in text.chars().enumerate() {
        if number == LONGEST {
            plain.push('…');
            break;
        }
        match is_plain_char(letter) {
            true => plain.push(letter),
            false => plain.extend(letter.escape_debug()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_nothing_to_obey() {
        for (text, expected) in [
            (
                "odoo-1: can't \"reach\" C:\\odoo – früh, 負荷",
                "odoo-1: can't \"reach\" C:\\odoo – früh, 負荷",
            ),
            ("\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("a\r\nb\tc\u{8}", "a\\r\\nb\\tc\\u{8}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}txt.exe\u{200b}", "\\u{202e}txt.exe\\u{200b}"),
        ] {
            assert_eq!(plain(text), expected);
            assert_eq!(is_plain(text), text == expected, "{text:?}");
        }
        assert!(plain(&"x".repeat(100_000)).len() < 3_000);
    }
}
