//! What the simulated device finds in each program, and what is no fault.

/// How a finding begins, and why it is expected.
const EXPECTED: &[(&str, &str)] = &[
    (
        "cuGetExportTable was called",
        "NVRTC asks the driver for it, and does without",
    ),
    (
        "Leak: the pinned buffer of ",
        "the buffers through which data reach a card are kept until the process ends",
    ),
    (
        "Leak: the allocation of 24 bytes made as number 1 on GPU ",
        "each card has a flag for indices out of range until the process ends",
    ),
];

/// Whether a finding is no fault.
pub fn is_expected(finding: &str) -> bool {
    let mut expected = EXPECTED.iter();
    expected.any(|(start, _)| finding.starts_with(start))
}

/// The findings as a test, in the words of a test program, so that who reads those counts them.
pub fn judged(findings: &[String]) -> Vec<String> {
    let (word, passed, failed) = match findings.is_empty() {
        true => ("ok", 1, 0),
        false => ("FAILED", 0, 1),
    };
    let findings = findings.iter().map(|finding| format!("FINDING {finding}"));
    let outcome = format!("test the simulated device finds nothing ... {word}");
    let result = format!("test result: {word}. {passed} passed; {failed} failed");
    findings.chain([outcome, result]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    #[test]
    fn only_what_is_known_is_expected() {
        assert!(is_expected(
            "cuGetExportTable was called, which is not simulated."
        ));
        for finding in [
            "cuGraphLaunch was called, which is not simulated.",
            "Leak: the allocation of 24 bytes made as number 2 on GPU 0 is left when the process ends.",
            "Two kernels write the same bytes.",
        ] {
            assert!(!is_expected(finding), "{finding}");
        }
    }

    #[test]
    fn a_finding_is_a_failure() {
        let tally = |findings: &[String]| {
            let mut tally = Tally::default();
            judged(findings).iter().for_each(|line| tally.read(line));
            (tally.passed, tally.failed)
        };
        assert_eq!(tally(&[]), (1, 0));
        assert_eq!(tally(&["Two streams write.".to_owned()]), (0, 1));
    }
}
