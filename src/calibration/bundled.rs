//! The bundled calibration texts, part of the program. What they are and why is in `calibration/README.md`.

macro_rules! texts {
    ($($domain:literal $file:literal)*) => {
        /// Domain, file name (`.jsonl`: conversations) and contents, in the order of drawing.
        pub const TEXTS: &[(&str, &str, &str)] =
            &[$(($domain, $file, include_str!(concat!("../../calibration/", $file)))),*];
    };
}

texts! {
    "narrative" "narrative.txt"
    "dialogue" "dialogue.txt"
    "encyclopedia" "encyclopedia.txt"
    "technical" "technical.txt"
    "mathematics" "mathematics.txt"
    "markup" "markup.txt"
    "chat" "chat.jsonl"
    "code" "code/rust.rs"
    "code" "code/python.py"
    "code" "code/arena.c"
    "code" "code/matrix.cpp"
    "code" "code/Ledger.java"
    "code" "code/events.js"
    "code" "code/store.ts"
    "code" "code/limiter.go"
    "code" "code/Parser.hs"
    "code" "code/library.sql"
    "code" "code/backup.sh"
    "code" "code/mixed.txt"
    "german" "german.txt"
    "french" "french.txt"
    "spanish" "spanish.txt"
    "russian" "russian.txt"
    "chinese" "chinese.txt"
    "japanese" "japanese.txt"
    "arabic" "arabic.txt"
    "hindi" "hindi.txt"
}
