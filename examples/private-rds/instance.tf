# The managed node: a small instance in a private subnet that runs the SSM agent and nothing else.

data "aws_ssm_parameter" "ami" {
  name = var.ami_parameter
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "instance" {
  name               = "${var.name}-instance"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

# The permissions that the agent needs to register and to open data channels.
resource "aws_iam_role_policy_attachment" "session_manager" {
  role       = aws_iam_role.instance.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "instance" {
  name = "${var.name}-instance"
  role = aws_iam_role.instance.name
}

data "aws_partition" "current" {}

resource "aws_instance" "this" {
  #checkov:skip=CKV_AWS_126:The instance only forwards data; metrics every five minutes are sufficient.
  ami                         = data.aws_ssm_parameter.ami.insecure_value
  instance_type               = var.instance_type
  subnet_id                   = aws_subnet.private[0].id
  vpc_security_group_ids      = [aws_security_group.instance.id]
  iam_instance_profile        = aws_iam_instance_profile.instance.name
  associate_public_ip_address = false
  ebs_optimized               = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required" # IMDSv2
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted = true
  }

  # A newer image must not replace a running instance at the next apply.
  lifecycle {
    ignore_changes = [ami]
  }

  # Without the endpoints, the agent cannot register, and tries again only after some time.
  depends_on = [aws_vpc_endpoint.systems_manager]

  tags = {
    Name = var.name
  }
}
