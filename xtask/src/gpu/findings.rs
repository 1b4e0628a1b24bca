//! What the simulated device finds in each program.

/// The findings as a test, in the words of a test program, so that who reads those counts them.
pub fn judged(findings: &[String]) -> Vec<String> {
    let (word, passed, failed) = match findings.is_empty() {
        true => ("ok", 1, 0),
        false => ("FAILED", 0, 1),
    };
    let findings = findings.iter().map(|finding| format!("FINDING {finding}"));
    let outcome = format!("test the simulated device finds nothing ... {word}");
    let result = format!("test result: {word}. {passed} passed; {failed} failed");
    [outcome]
        .into_iter()
        .chain(findings)
        .chain([result])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    #[test]
    fn a_finding_is_a_failure() {
        let tally = |findings: &[String]| {
            let mut tally = Tally::default();
            judged(findings).iter().for_each(|line| tally.read(line));
            let lines = tally.failures.into_iter().flat_map(|failure| failure.lines);
            (tally.passed, tally.failed, lines.collect::<Vec<_>>())
        };
        assert_eq!(tally(&[]), (1, 0, vec![]));
        let told = vec!["FINDING Two streams write.".to_owned()];
        assert_eq!(tally(&["Two streams write.".to_owned()]), (0, 1, told));
    }
}
