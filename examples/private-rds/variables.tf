variable "region" {
  description = "Region of all resources."
  type        = string
  default     = "eu-central-1"
}

variable "name" {
  description = "Name of the database, and prefix of the names of all other resources."
  type        = string
  default     = "example-db"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,40}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "Use 2 to 42 lower-case letters, digits and single hyphens; begin with a letter."
  }
}

variable "vpc_cidr" {
  description = "Address range of the VPC. It needs no route to other networks."
  type        = string
  default     = "10.20.0.0/24"
}

variable "instance_type" {
  description = "Type of the instance that the sessions run on. The smallest Graviton type is sufficient."
  type        = string
  default     = "t4g.nano"
}

variable "ami_parameter" {
  description = "Public SSM parameter with the image of the instance. The image must contain the SSM agent and fit the type's architecture."
  type        = string
  default     = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"
}

variable "database_class" {
  description = "Class of the database instance."
  type        = string
  default     = "db.t4g.micro"
}

variable "deletion_protection" {
  description = "Whether the database is protected from deletion. Set it to false before terraform destroy."
  type        = bool
  default     = true
}
