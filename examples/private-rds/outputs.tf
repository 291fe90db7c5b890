output "forward" {
  description = "Opens the tunnel and prints the command line of the MySQL client."
  value       = "aws-ssm-forward forward rds:${aws_db_instance.this.identifier} --region ${var.region}"
}

output "forward_explicit" {
  description = "The same without look-ups."
  value       = "aws-ssm-forward forward ${aws_instance.this.id} -L 3306:${aws_db_instance.this.address}:${aws_db_instance.this.port} --region ${var.region}"
}

output "password" {
  description = "Prints the master user's password from Secrets Manager."
  value       = "aws secretsmanager get-secret-value --secret-id ${aws_db_instance.this.master_user_secret[0].secret_arn} --query SecretString --output text --region ${var.region}"
}

output "instance_id" {
  description = "The managed node."
  value       = aws_instance.this.id
}

output "database_host" {
  description = "The database's host name. Only hosts in the VPC can reach the address to which it resolves."
  value       = aws_db_instance.this.address
}
