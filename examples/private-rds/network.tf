# A VPC without an internet gateway and without a NAT gateway: nothing in it can be reached from outside, and nothing in it can
# reach the internet.

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:The subnets ignore changes of their zone, so that a new zone does not replace them.
  state = "available"
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:Flow logs cost more than the rest of this network; add aws_flow_log where they are required.
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true # The interface endpoints' private DNS names need both.

  tags = {
    Name = var.name
  }
}

# RDS requires subnets in two zones, even for a database in one zone.
resource "aws_subnet" "private" {
  count = 2

  vpc_id            = aws_vpc.this.id
  availability_zone = data.aws_availability_zones.available.names[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 2, count.index)

  tags = {
    Name = "${var.name}-private-${count.index}"
  }

  # The order of the list may change when AWS adds a zone.
  lifecycle {
    ignore_changes = [availability_zone]
  }
}

# The security groups allow nothing by default. Every rule is below.

resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id
}

resource "aws_security_group" "instance" {
  name        = "${var.name}-instance"
  description = "The instance that Session Manager sessions run on"
  vpc_id      = aws_vpc.this.id
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "The database"
  vpc_id      = aws_vpc.this.id
}

resource "aws_security_group" "endpoints" {
  name        = "${var.name}-endpoints"
  description = "The interface endpoints of Systems Manager"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_egress_rule" "instance_to_database" {
  security_group_id            = aws_security_group.instance.id
  referenced_security_group_id = aws_security_group.database.id
  description                  = "MySQL"
  ip_protocol                  = "tcp"
  from_port                    = 3306
  to_port                      = 3306
}

resource "aws_vpc_security_group_ingress_rule" "database_from_instance" {
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = aws_security_group.instance.id
  description                  = "MySQL"
  ip_protocol                  = "tcp"
  from_port                    = 3306
  to_port                      = 3306
}

resource "aws_vpc_security_group_egress_rule" "instance_to_endpoints" {
  security_group_id            = aws_security_group.instance.id
  referenced_security_group_id = aws_security_group.endpoints.id
  description                  = "Systems Manager"
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_ingress_rule" "endpoints_from_instance" {
  security_group_id            = aws_security_group.endpoints.id
  referenced_security_group_id = aws_security_group.instance.id
  description                  = "Systems Manager"
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

# The network path from the instance to Systems Manager. Agents up to 3.3.39 also use ec2messages.
resource "aws_vpc_endpoint" "systems_manager" {
  for_each = toset(["ssm", "ssmmessages", "ec2messages"])

  vpc_id              = aws_vpc.this.id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = aws_subnet.private[*].id
  security_group_ids  = [aws_security_group.endpoints.id]

  tags = {
    Name = "${var.name}-${each.key}"
  }
}
