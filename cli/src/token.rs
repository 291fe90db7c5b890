//! `token`: prints a temporary password for a database user, which is derived from AWS credentials.

use ssm_forward::ServiceSpec;

use crate::args::TokenArgs;
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::writer;

/// Prints the token for the database's real endpoint.
///
/// # Errors
/// Returns an error if the database does not exist or does not accept tokens, or if there are no credentials.
pub(crate) async fn run(args: &TokenArgs) -> Result<ExitCode, Failure> {
    let aws = connect::aws(&args.aws).await?;
    let service = aws.find_service(&args.database).await?;
    require_iam(&args.database, service.iam_auth)?;
    let token = aws.database_token(&service, &args.user).await?;
    writer::print(&format!("{}\n", token.as_str()))?;
    Ok(ExitCode::Ok)
}

/// Returns an error if the database does not accept tokens. The database itself would only report a wrong password.
pub(crate) fn require_iam(database: &ServiceSpec, enabled: bool) -> Result<(), Failure> {
    if enabled {
        return Ok(());
    }
    let kind = if database.reader { "cluster" } else { "instance" };
    let text = format!(
        "{database} has IAM database authentication disabled, so it accepts no tokens: \
         aws rds modify-db-{kind} --db-{kind}-identifier {} --enable-iam-database-authentication --apply-immediately",
        database.name
    );
    Err(Failure::new(ExitCode::Api, "iam_auth_disabled", text))
}
