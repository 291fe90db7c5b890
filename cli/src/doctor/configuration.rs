//! Checks of AWS's configuration files and the region.

use std::sync::Arc;

use ssm_forward::{AwsProvider, ConfigurationFile, configuration_files};

use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::completion;
use crate::connect;
use crate::exit_code::{ExitCode, Failure};

/// Checks which files exist, and whether they contain errors or sections without effect.
pub(super) async fn files(_: &mut Facts) -> Outcome {
    let files = configuration_files().await;
    let seen: Vec<_> = files.iter().map(describe).collect();
    let seen = seen.join(", ");
    if let Some(error) = files.iter().find_map(|file| file.error.clone()) {
        return Err(Finding::failed(ExitCode::Config, error).remedy("correct this line"));
    }
    let ignored: Vec<_> = files.iter().flat_map(|file| &file.ignored).map(String::as_str).collect();
    if ignored.is_empty() {
        return Ok(Finding::fine(seen));
    }
    let saw = format!("{seen}; sections that AWS's tools ignore: {}", ignored.join("; "));
    Ok(Finding::warning(saw).remedy("correct the names of these sections if they should be used"))
}

fn describe(file: &ConfigurationFile) -> String {
    let path = file.path.display();
    match (file.exists, file.profiles) {
        (false, _) => format!("{path} (does not exist)"),
        (true, 1) => format!("{path} (1 profile)"),
        (true, profiles) => format!("{path} ({profiles} profiles)"),
    }
}

/// Checks the region, and whether the rest of the configuration can be used.
pub(super) async fn region(facts: &mut Facts) -> Outcome {
    let aws = match AwsProvider::new(connect::lookup_config(&facts.query.options.aws)).await {
        Ok(aws) => Arc::new(aws),
        Err(error) => {
            let Failure { code, message, .. } = error.into();
            return Err(Finding::failed(code, message));
        }
    };
    let origin = aws.origin().await;
    facts.aws = Some(aws);
    let saw = format!("{}, profile {:?}, endpoint {}", origin.region, origin.profile, origin.endpoint);
    if completion::is_region(&origin.region) {
        return Ok(Finding::fine(saw));
    }
    let saw = format!("{saw}; this version of the program does not know this region");
    Ok(Finding::warning(saw).remedy("check the spelling: --region, AWS_REGION, or region in the profile"))
}
