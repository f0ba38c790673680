# Vectors of 16 Float64, one for each row of a tile, for arithmetic that is the same to the last bit on every machine: a lane's operations do
# not depend on how wide registers are, only +, * and powers of two occur, and nothing lets a compiler fuse or reorder them.
#
# What is kept is 0 or at least TINY, so that no product of two is subnormal: what processors and libraries do to those differs.

const Doubles = NTuple{LANES,VecElement{Float64}}
const TINY = 2.0^-500

@inline load_doubles(p::Ptr{Float64}) = unsafe_load(Ptr{Doubles}(p))
@inline store_doubles(p::Ptr{Float64}, v::Doubles) = unsafe_store!(Ptr{Doubles}(p), v)

@inline splat(x::Float64) = Base.llvmcall(
    """%2 = insertelement <16 x double> undef, double %0, i32 0
       %3 = shufflevector <16 x double> %2, <16 x double> undef, <16 x i32> zeroinitializer
       ret <16 x double> %3""", Doubles, Tuple{Float64}, x)

@inline mul(a::Doubles, b::Doubles) = Base.llvmcall(
    """%3 = fmul <16 x double> %0, %1
       ret <16 x double> %3""", Doubles, Tuple{Doubles,Doubles}, a, b)

@inline add(a::Doubles, b::Doubles) = Base.llvmcall(
    """%3 = fadd <16 x double> %0, %1
       ret <16 x double> %3""", Doubles, Tuple{Doubles,Doubles}, a, b)

@inline max_lanes(a::Doubles, b::Doubles) = Base.llvmcall(
    """%3 = fcmp ogt <16 x double> %0, %1
       %4 = select <16 x i1> %3, <16 x double> %0, <16 x double> %1
       ret <16 x double> %4""", Doubles, Tuple{Doubles,Doubles}, a, b)

every_double(x::Float64) = "<" * join(fill("double 0x$(string(reinterpret(UInt64, x), base=16, pad=16))", LANES), ", ") * ">"
every_long(x::Integer) = "<" * join(fill("i64 $x", LANES), ", ") * ">"

const WITHOUT_TINY = """%2 = fcmp olt <16 x double> %0, $(every_double(TINY))
                        %3 = select <16 x i1> %2, <16 x double> zeroinitializer, <16 x double> %0
                        ret <16 x double> %3"""
# `a` where it is at least `TINY`, else 0.
@eval @inline without_tiny(a::Doubles) = Base.llvmcall($WITHOUT_TINY, Doubles, Tuple{Doubles}, a)

# The exponent field, less its bias: the largest e with 2^e <= a, of normal numbers.
const DOUBLE_EXPONENT = """%2 = bitcast <16 x double> %0 to <16 x i64>
                           %3 = lshr <16 x i64> %2, $(every_long(52))
                           %4 = sub <16 x i64> %3, $(every_long(1023))
                           %5 = icmp eq <16 x i64> %2, zeroinitializer
                           %6 = select <16 x i1> %5, <16 x i64> $(every_long(EXPONENT_OF_ZERO)), <16 x i64> %4
                           %7 = trunc <16 x i64> %6 to <16 x i32>
                           ret <16 x i32> %7"""
# floor(log2(a)); of 0, `EXPONENT_OF_ZERO`.
@eval @inline exponent_lanes(a::Doubles) = Base.llvmcall($DOUBLE_EXPONENT, IntLanes, Tuple{Doubles}, a)

# 2^e; 0 below the normal numbers, and their largest power of two above them.
const DOUBLE_POWER = """%2 = sext <16 x i32> %0 to <16 x i64>
                        %3 = icmp slt <16 x i64> %2, $(every_long(-1022))
                        %4 = icmp sgt <16 x i64> %2, $(every_long(1023))
                        %5 = select <16 x i1> %4, <16 x i64> $(every_long(1023)), <16 x i64> %2
                        %6 = add <16 x i64> %5, $(every_long(1023))
                        %7 = shl <16 x i64> %6, $(every_long(52))
                        %8 = select <16 x i1> %3, <16 x i64> zeroinitializer, <16 x i64> %7
                        %9 = bitcast <16 x i64> %8 to <16 x double>
                        ret <16 x double> %9"""
@eval @inline double_power(e::IntLanes) = Base.llvmcall($DOUBLE_POWER, Doubles, Tuple{IntLanes}, e)

"2^e of one number, as [`double_power`](@ref)."
@inline double_power(e::Integer) = e < -1022 ? 0.0 : reinterpret(Float64, (min(Int64(e), 1023) + 1023) << 52)

"floor(log2(a)) of one number; of 0, `EXPONENT_OF_ZERO`."
@inline double_exponent(a::Float64) = a == 0 ? Int(EXPONENT_OF_ZERO) : Int(reinterpret(UInt64, a) >> 52) - 1023

@inline without_tiny(a::Float64) = a < TINY ? 0.0 : a
