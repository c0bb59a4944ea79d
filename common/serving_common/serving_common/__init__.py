"""What every service of the serving patterns needs, so that a pattern's folder holds nothing but the pattern."""
