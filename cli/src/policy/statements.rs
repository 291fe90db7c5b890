//! The statements of the policy.

use std::collections::BTreeSet;

use ssm_forward::{ServiceKind, ServiceSpec, TargetSpec};

use crate::exit_code::{ExitCode, Failure};
use crate::spec::Remote;

/// The account and region of the resources.
#[derive(Clone, Debug)]
pub(super) struct Account {
    partition: &'static str,
    region: String,
    id: String,
}

impl Account {
    pub(super) fn new(region: &str, id: String) -> Self {
        let partition = match region {
            _ if region.starts_with("cn-") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ if region.starts_with("us-isob-") => "aws-iso-b",
            _ if region.starts_with("us-isof-") => "aws-iso-f",
            _ if region.starts_with("eu-isoe-") => "aws-iso-e",
            _ if region.starts_with("us-iso-") => "aws-iso",
            _ if region.starts_with("eusc-") => "aws-eusc",
            _ => "aws",
        };
        Self { partition, region: region.to_owned(), id }
    }

    /// Returns an ARN of this account and region.
    fn arn(&self, service: &str, resource: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{resource}", self.partition, self.region, self.id)
    }

    /// Returns the ARN of a document that AWS owns.
    fn aws_document(&self, name: &str) -> String {
        format!("arn:{}:ssm:{}::document/{name}", self.partition, self.region)
    }
}

/// The targets and actions that the policy must allow.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) account: Account,
    pub(super) targets: Vec<TargetSpec>,
    pub(super) services: Vec<ServiceSpec>,
    pub(super) remotes: Vec<Remote>,
    pub(super) shell: bool,
    pub(super) exec: bool,
    pub(super) ssh: bool,
    pub(super) relay: bool,
    /// Pairs of a database's resource id (`None` for any database) and the user to log in as.
    pub(super) database_users: Vec<(Option<String>, String)>,
}

/// A policy, and notes on how to restrict it further.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    pub(super) statements: Vec<Statement>,
    pub(super) notes: Vec<String>,
}

/// One statement. All statements have the effect Allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sid: String,
    pub(super) actions: Vec<&'static str>,
    pub(super) resources: Vec<String>,
    /// The conditions, each with its operator, key and value.
    pub(super) conditions: Vec<(&'static str, String, String)>,
}

impl Statement {
    fn new(sid: impl Into<String>, actions: &[&'static str], resources: Vec<String>) -> Self {
        Self { sid: sid.into(), actions: actions.to_vec(), resources, conditions: Vec::new() }
    }

    fn when(mut self, operator: &'static str, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.conditions.push((operator, key.into(), value.into()));
        self
    }
}

/// Creates the policy.
///
/// # Errors
/// Returns an error if IAM cannot name a target.
pub(super) fn policy(wanted: &Wanted) -> Result<Policy, Failure> {
    let mut policy = Policy::default();
    start_on_nodes(wanted, &mut policy)?;
    start_with_documents(wanted, &mut policy);
    own_sessions(wanted, &mut policy);
    look_up(wanted, &mut policy);
    log_in(wanted, &mut policy);
    Ok(policy)
}

/// The condition that makes IAM check the default document too, if a StartSession request names no document.
const DOCUMENT_CHECK: (&str, &str, &str) = ("BoolIfExists", "ssm:SessionDocumentAccessCheck", "true");

fn start_on_nodes(wanted: &Wanted, policy: &mut Policy) -> Result<(), Failure> {
    let account = &wanted.account;
    let mut by_id = BTreeSet::new();
    let checked = |statement: Statement| {
        let (operator, key, value) = DOCUMENT_CHECK;
        statement.when(operator, key, value)
    };
    for target in &wanted.targets {
        let tags = match target {
            TargetSpec::Id(id) => {
                by_id.insert(node_arn(account, id)?);
                continue;
            }
            TargetSpec::Ecs(spec) => {
                by_id.insert(account.arn("ecs", &format!("task/{}/*", spec.cluster)));
                continue;
            }
            TargetSpec::Tags(tags) => tags.clone(),
            TargetSpec::AutoScalingGroup(name) => vec![("aws:autoscaling:groupName".to_owned(), name.clone())],
            TargetSpec::Name(name) => vec![("Name".to_owned(), name.clone())],
            _ => {
                let text = format!(
                    "IAM policies cannot name an address: use {target}'s instance id, or one of its tags (tag:Key=Value)"
                );
                return Err(Failure::new(ExitCode::Usage, "usage", text));
            }
        };
        let nodes = vec![account.arn("ec2", "instance/*"), account.arn("ssm", "managed-instance/*")];
        let sid = format!("StartSessionOnTaggedNodes{}", policy.statements.len() + 1);
        let statement = Statement::new(sid, &["ssm:StartSession"], nodes);
        let statement = tags.into_iter().fold(checked(statement), |statement, (key, value)| {
            statement.when("StringEquals", format!("ssm:resourceTag/{key}"), value)
        });
        policy.statements.push(statement);
        policy.notes.push(format!("anyone who can change the tags of an instance decides whether {target} covers it"));
    }
    if wanted.targets.is_empty() {
        by_id.insert(account.arn("ec2", "instance/*"));
        policy.notes.push(
            "it allows sessions on every instance; name targets (ids or tag:Key=Value) to allow only those".into(),
        );
    }
    if !by_id.is_empty() {
        let nodes = by_id.into_iter().collect();
        policy.statements.insert(0, checked(Statement::new("StartSessionOnNodes", &["ssm:StartSession"], nodes)));
    }
    Ok(())
}

fn node_arn(account: &Account, id: &str) -> Result<String, Failure> {
    match id {
        _ if id.starts_with("i-") => Ok(account.arn("ec2", &format!("instance/{id}"))),
        _ if id.starts_with("mi-") => Ok(account.arn("ssm", &format!("managed-instance/{id}"))),
        _ => match id.strip_prefix("ecs:").and_then(|rest| rest.rsplitn(3, '_').nth(2)) {
            Some(cluster) => Ok(account.arn("ecs", &format!("task/{cluster}/*"))),
            None => {
                let text =
                    format!("{id} is a target whose ARN is not known here: allow ssm:StartSession on it by hand");
                Err(Failure::new(ExitCode::Usage, "usage", text))
            }
        },
    }
}

fn start_with_documents(wanted: &Wanted, policy: &mut Policy) {
    let account = &wanted.account;
    let to_node = wanted.remotes.iter().any(|remote| remote.host.is_none());
    let to_host = !wanted.services.is_empty() || wanted.remotes.iter().any(|remote| remote.host.is_some());
    let nothing_named = !to_node && !to_host && !wanted.shell && !wanted.exec && !wanted.ssh;
    let named = [
        (to_node || nothing_named || wanted.relay, "AWS-StartPortForwardingSession"),
        (to_host || nothing_named, "AWS-StartPortForwardingSessionToRemoteHost"),
        (wanted.exec || wanted.relay, "AWS-StartNonInteractiveCommand"),
        (wanted.exec || wanted.relay, "AWS-StartInteractiveCommand"),
        (wanted.ssh, "AWS-StartSSHSession"),
    ];
    let mut documents: Vec<_> =
        named.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, name)| account.aws_document(name)).collect();
    if wanted.shell {
        documents.push(account.arn("ssm", "document/SSM-SessionManagerRunShell"));
    }
    policy.statements.push(Statement::new("StartSessionWithDocuments", &["ssm:StartSession"], documents));
    if wanted.relay {
        policy.notes.push(
            "AWS-StartInteractiveCommand, which starts the relay, and AWS-StartNonInteractiveCommand, which makes downloads \
             faster, run any command as the user of the session; without the latter, use --relay-feeds=off"
                .into(),
        );
    }
    if to_host || nothing_named {
        policy.notes.push(
            "AWS-StartPortForwardingSessionToRemoteHost reaches every host and port that the node reaches; a session \
             document of your own with a fixed host and portNumber, allowed in its place, narrows that (--document-name)"
                .into(),
        );
    }
}

/// Allows the user's own sessions. A session's id begins with its user: `aws:username` for IAM users, `aws:userid` for roles.
fn own_sessions(wanted: &Wanted, policy: &mut Policy) {
    let own = ["${aws:username}", "${aws:userid}"].map(|who| wanted.account.arn("ssm", &format!("session/{who}-*")));
    let actions = ["ssm:ResumeSession", "ssm:TerminateSession", "ssmmessages:OpenDataChannel"];
    policy.statements.push(Statement::new("UseOwnSessions", &actions, own.to_vec()));
}

/// Allows the calls that look up names. List operations cannot be restricted to a resource.
fn look_up(wanted: &Wanted, policy: &mut Policy) {
    let account = &wanted.account;
    let mut lists = Vec::new();
    if !wanted.services.is_empty() || wanted.targets.iter().any(TargetSpec::is_name) {
        lists.extend(["ssm:DescribeInstanceInformation", "ec2:DescribeInstances"]);
    }
    if !lists.is_empty() {
        policy.statements.push(Statement::new("FindNodes", &lists, vec!["*".to_owned()]));
        policy.notes.push("with instance ids instead of names, the statement FindNodes is not needed".into());
    }
    if wanted.targets.iter().any(|target| matches!(target, TargetSpec::Ecs(_))) {
        let actions = ["ecs:DescribeTasks", "ecs:ListTasks"];
        let clusters = wanted.targets.iter().filter_map(|target| match target {
            TargetSpec::Ecs(spec) => Some(spec.cluster.as_str()),
            _ => None,
        });
        let clusters: BTreeSet<&str> = clusters.collect();
        let resources = clusters.into_iter().flat_map(|cluster| {
            [format!("task/{cluster}/*"), format!("container-instance/{cluster}/*")]
                .map(|name| account.arn("ecs", &name))
        });
        policy.statements.push(Statement::new("FindTasks", &actions, resources.collect()));
    }
    let of_kind = |kind: ServiceKind| wanted.services.iter().filter(move |spec| spec.kind == kind);
    let arns = |kind, service: &'static str, prefixes: &[&str]| -> Vec<String> {
        let each = of_kind(kind).flat_map(|spec| prefixes.iter().map(move |prefix| format!("{prefix}{}", spec.name)));
        each.map(|resource| account.arn(service, &resource)).collect()
    };
    let mut rds = arns(ServiceKind::Rds, "rds", &["db:", "cluster:"]);
    if !rds.is_empty() {
        rds.push(account.arn("rds", "subgrp:*"));
        let actions = ["rds:DescribeDBClusters", "rds:DescribeDBInstances", "rds:DescribeDBSubnetGroups"];
        policy.statements.push(Statement::new("FindDatabases", &actions, rds));
    }
    let mut caches =
        arns(ServiceKind::ElastiCache, "elasticache", &["cluster:", "replicationgroup:", "serverlesscache:"]);
    if !caches.is_empty() {
        caches.push(account.arn("elasticache", "subnetgroup:*"));
        let actions = [
            "elasticache:DescribeCacheClusters",
            "elasticache:DescribeCacheSubnetGroups",
            "elasticache:DescribeReplicationGroups",
            "elasticache:DescribeServerlessCaches",
        ];
        policy.statements.push(Statement::new("FindCaches", &actions, caches));
    }
    let domains = arns(ServiceKind::OpenSearch, "es", &["domain/"]);
    if !domains.is_empty() {
        policy.statements.push(Statement::new("FindDomains", &["es:DescribeDomain"], domains));
    }
    let clusters = arns(ServiceKind::Eks, "eks", &["cluster/"]);
    if !clusters.is_empty() {
        policy.statements.push(Statement::new("FindKubernetes", &["eks:DescribeCluster"], clusters));
    }
}

fn log_in(wanted: &Wanted, policy: &mut Policy) {
    let users = wanted.database_users.iter().map(|(database, user)| {
        let database = database.as_deref().unwrap_or("*");
        wanted.account.arn("rds-db", &format!("dbuser:{database}/{user}"))
    });
    let users: Vec<_> = users.collect();
    if !users.is_empty() {
        policy.statements.push(Statement::new("LogInToDatabases", &["rds-db:connect"], users));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(targets: &[&str], services: &[&str]) -> Wanted {
        Wanted {
            account: Account::new("eu-west-1", "111122223333".into()),
            targets: targets.iter().map(|target| target.parse().unwrap()).collect(),
            services: services.iter().map(|service| service.parse().unwrap()).collect(),
            remotes: Vec::new(),
            shell: false,
            exec: false,
            ssh: false,
            relay: false,
            database_users: Vec::new(),
        }
    }

    fn statement(policy: &Policy, sid: &str) -> Statement {
        policy
            .statements
            .iter()
            .find(|statement| statement.sid == sid)
            .unwrap_or_else(|| panic!("{sid}: {policy:?}"))
            .clone()
    }

    #[test]
    fn only_what_is_named_is_allowed() {
        let wanted = Wanted { remotes: vec![Remote { host: None, port: 80 }], ..wanted(&["i-0a", "mi-0b"], &[]) };
        let policy = policy(&wanted).unwrap();
        let start = statement(&policy, "StartSessionOnNodes");
        let arns = [
            "arn:aws:ec2:eu-west-1:111122223333:instance/i-0a",
            "arn:aws:ssm:eu-west-1:111122223333:managed-instance/mi-0b",
        ];
        assert_eq!(start.resources, arns);
        assert_eq!(start.conditions, [("BoolIfExists", "ssm:SessionDocumentAccessCheck".into(), "true".into())]);
        let documents = statement(&policy, "StartSessionWithDocuments").resources;
        assert_eq!(documents, ["arn:aws:ssm:eu-west-1::document/AWS-StartPortForwardingSession"]);
        // Ids are not looked up.
        assert!(!policy.statements.iter().any(|statement| statement.resources.contains(&"*".to_owned())), "{policy:?}");
    }

    #[test]
    fn tags_and_groups_are_conditions() {
        let policy = policy(&wanted(&["tag:Role=bastion,Env=prod", "asg:workers"], &[])).unwrap();
        let tagged = statement(&policy, "StartSessionOnTaggedNodes1").conditions;
        assert!(tagged.contains(&("StringEquals", "ssm:resourceTag/Role".into(), "bastion".into())), "{tagged:?}");
        assert!(tagged.contains(&("StringEquals", "ssm:resourceTag/Env".into(), "prod".into())), "{tagged:?}");
        let group = statement(&policy, "StartSessionOnTaggedNodes2").conditions;
        let key = "ssm:resourceTag/aws:autoscaling:groupName";
        assert!(group.contains(&("StringEquals", key.into(), "workers".into())), "{group:?}");
        // Every statement that starts sessions on nodes checks the document.
        assert!(tagged.iter().chain(&group).filter(|condition| condition.0 == "BoolIfExists").count() == 2);
    }

    #[test]
    fn a_database_brings_its_lookups_and_its_users() {
        let mut wanted = wanted(&["i-0a"], &["rds:orders"]);
        wanted.database_users = vec![(Some("db-ABC".into()), "app".into()), (None, "report".into())];
        let policy = policy(&wanted).unwrap();
        let found = statement(&policy, "FindDatabases").resources;
        assert!(found.contains(&"arn:aws:rds:eu-west-1:111122223333:db:orders".to_owned()), "{found:?}");
        let users = ["dbuser:db-ABC/app", "dbuser:*/report"]
            .map(|user| format!("arn:aws:rds-db:eu-west-1:111122223333:{user}"));
        assert_eq!(statement(&policy, "LogInToDatabases").resources, users);
        let documents = statement(&policy, "StartSessionWithDocuments").resources;
        assert_eq!(documents, ["arn:aws:ssm:eu-west-1::document/AWS-StartPortForwardingSessionToRemoteHost"]);
    }

    #[test]
    fn partitions_follow_from_the_region() {
        for (region, partition) in [
            ("eu-west-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
        ] {
            assert_eq!(Account::new(region, "1".into()).partition, partition);
        }
    }

    #[test]
    fn what_iam_cannot_name_is_refused_in_words() {
        let refused = |target| policy(&wanted(&[target], &[])).unwrap_err().message;
        assert!(refused("10.0.0.5").contains("instance id"));
        assert!(refused("sagemaker-cluster:x").contains("by hand"));
    }
}
