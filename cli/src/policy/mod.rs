//! `policy`: the minimal IAM policy for given targets and forwards.

mod render;
mod statements;

use ssm_forward::{AwsProvider, ServiceKind, ServiceSpec};

use crate::args::{Named, PolicyArgs, PolicyFormat};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::{console, untrusted, writer};

use statements::{Account, Wanted};

/// Prints the policy on standard output, and notes on how to restrict it further on standard error.
///
/// # Errors
/// Returns an error if the account or the region is unknown, or if a policy cannot name a target.
pub(crate) async fn run(args: &PolicyArgs) -> Result<ExitCode, Failure> {
    // Credentials are needed only if the account is not given, or if databases must be looked up.
    let aws = AwsProvider::new(connect::lookup_config(&args.aws)).await?;
    let account = match &args.account {
        Some(account) => account.clone(),
        None => aws.caller().await.map_err(without_account)?.account,
    };
    let (mut targets, mut services) = (Vec::new(), Vec::new());
    for name in args.names.iter().cloned() {
        match name {
            Named::Target(target) => targets.push(target),
            Named::Service(service) => services.push(service),
        }
    }
    let mut wanted = Wanted {
        account: Account::new(aws.region(), account),
        targets,
        services,
        remotes: args.forwards.iter().map(|spec| spec.remote.clone()).collect(),
        shell: args.shell,
        exec: args.exec,
        ssh: args.ssh,
        relay: args.relay,
        database_users: Vec::new(),
    };
    for user in &args.database_users {
        for spec in wanted.services.iter().filter(|spec| spec.kind == ServiceKind::Rds) {
            wanted.database_users.push((resource_id(&aws, spec).await, user.clone()));
        }
    }
    let policy = statements::policy(&wanted)?;
    let text = match args.output {
        PolicyFormat::Json => render::json(&policy),
        PolicyFormat::Terraform => render::terraform(&policy),
    };
    writer::print(&text)?;
    if args.output == PolicyFormat::Json {
        for note in &policy.notes {
            console::note(&format!("note: {}", untrusted::line(note)));
        }
    }
    Ok(ExitCode::Ok)
}

fn without_account(error: ssm_forward::ProviderError) -> Failure {
    let failure = Failure::from(error);
    Failure { message: format!("{}; or name the account with --account", failure.message), ..failure }
}

/// Returns the id by which IAM identifies a database. Returns `None` if the look-up fails; the policy then covers all databases of
/// the account.
async fn resource_id(aws: &AwsProvider, spec: &ServiceSpec) -> Option<String> {
    match aws.find_service(spec).await {
        Ok(service) => service.resource_id,
        Err(error) => {
            console::note(&format!("warning: the policy allows any database: {}", untrusted::line(&error.to_string())));
            None
        }
    }
}
