//! Figures as people read them: units, significant digits, signs; and HTML escaping. Every renderer uses these, so a value
//! looks the same in all of them.

pub use crate::escape::html;
use crate::eval::Estimate;

/// Adds formatted text to a page; writing to a `String` cannot fail.
macro_rules! add {
    ($out:expr, $($arg:tt)*) => {{ let _ = write!($out, $($arg)*); }};
}
pub(super) use add;

/// `digits` significant digits without exponent, for magnitudes from 1e-9 up.
pub fn significant(v: f64, digits: i32) -> String {
    if v == 0.0 || !v.is_finite() {
        return if v == 0.0 { "0".into() } else { "–".into() };
    }
    let decimals = (digits - 1 - v.abs().log10().floor() as i32).clamp(0, 9) as usize;
    minus(format!("{v:.decimals$}"))
}

/// Decimals that show two digits of a standard error.
pub fn decimals_for(e: Estimate) -> usize {
    if e.std_error > 0.0 { (1 - e.std_error.log10().floor() as i32).clamp(0, 7) as usize } else { 4 }
}

/// Fixed decimals.
pub fn fixed(v: f64, decimals: usize) -> String {
    if v.is_finite() { minus(format!("{v:.decimals$}")) } else { "–".into() }
}

/// Fixed decimals, with a plus sign where it is positive.
pub fn signed(v: f64, decimals: usize) -> String {
    let text = fixed(v, decimals);
    if v > 0.0 { format!("+{text}") } else { text }
}

/// A share as a percentage with a no-break space: `96.3 %`.
pub fn percent(share: f64, decimals: usize) -> String {
    format!("{}\u{a0}%", fixed(100.0 * share, decimals))
}

pub fn signed_percent(share: f64, decimals: usize) -> String {
    format!("{}\u{a0}%", signed(100.0 * share, decimals))
}

/// Decimal units, three digits: `124 MB`, `4.92 GB`.
pub fn bytes(n: u64) -> String {
    let (value, unit) = match n {
        0..1_000 => return format!("{n}\u{a0}B"),
        1_000..1_000_000 => (n as f64 / 1e3, "kB"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "MB"),
        _ => (n as f64 / 1e9, "GB"),
    };
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}\u{a0}{unit}")
}

/// `12 345`, in groups of three with narrow no-break spaces.
pub fn count(n: usize) -> String {
    crate::writer::gguf::count(n as u64)
}

/// `135 M`, `8.03 B` parameters.
pub fn parameters(n: u64) -> String {
    match n {
        0..1_000_000 => count(n as usize),
        1_000_000..1_000_000_000 => format!("{}\u{a0}M", significant(n as f64 / 1e6, 3)),
        _ => format!("{}\u{a0}B", significant(n as f64 / 1e9, 3)),
    }
}

/// `42 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..120 => format!("{}\u{a0}s", if seconds < 10.0 { fixed(seconds, 1) } else { s.to_string() }),
        120..7200 => format!("{}\u{a0}min {}\u{a0}s", s / 60, s % 60),
        _ => format!("{}\u{a0}h {}\u{a0}min", s / 3600, s % 3600 / 60),
    }
}

/// A real minus sign, and no minus before a zero.
fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest.to_string(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(significant(0.012345, 3), "0.0123");
        assert_eq!(significant(123.4, 3), "123");
        assert_eq!(significant(-1.5, 3), "−1.50");
        assert_eq!(significant(0.0, 3), "0");
        assert_eq!(significant(f64::NAN, 3), "–");
        assert_eq!(signed(-0.0001, 2), "0.00");
        assert_eq!(signed(0.5, 1), "+0.5");
        assert_eq!(percent(0.963, 1), "96.3\u{a0}%");
        assert_eq!(bytes(124_167_776), "124\u{a0}MB");
        assert_eq!(bytes(4_920_000_000), "4.92\u{a0}GB");
        assert_eq!(bytes(999), "999\u{a0}B");
        assert_eq!(count(10_200), "10\u{202f}200");
        assert_eq!(count(1020), "1020");
        assert_eq!(parameters(134_515_008), "135\u{a0}M");
        assert_eq!(duration(200.0), "3\u{a0}min 20\u{a0}s");
    }

    #[test]
    fn nothing_escapes_the_escape() {
        assert_eq!(html("<a href=\"x\" id='y'>&\u{0}"), "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\u{fffd}");
    }
}
