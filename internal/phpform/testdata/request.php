<?php
// Answers a request with the variables that PHP made of it.
error_reporting(0);
echo base64_encode(serialize($_GET + $_POST));
