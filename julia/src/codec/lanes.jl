# Vectors of 16 Float64, or Float32 (`Lanes`), one for each row of a tile, for arithmetic that is the same to the last bit on every machine: a
# lane's operations do not depend on how wide registers are, only +, * and powers of two occur, and nothing lets a compiler fuse or reorder them.
#
# What is kept is 0 or at least `tiny(T)`, so that no product of two is subnormal: what processors and libraries do to those differs.

const Doubles = NTuple{LANES,VecElement{Float64}}
const TINY = 2.0^-500

tiny(::Type{Float64}) = TINY
tiny(::Type{Float32}) = 2f0^-60

@inline load_lanes(p::Ptr{Float64}) = unsafe_load(Ptr{Doubles}(p))
@inline store_lanes(p::Ptr{Float64}, v::Doubles) = unsafe_store!(Ptr{Doubles}(p), v)

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

const WITHOUT_TINY_FLOATS = """%2 = fcmp olt <16 x float> %0, $(every_lane(Float64(tiny(Float32))))
                               %3 = select <16 x i1> %2, <16 x float> zeroinitializer, <16 x float> %0
                               ret <16 x float> %3"""
const WITHOUT_TINY = """%2 = fcmp olt <16 x double> %0, $(every_double(TINY))
                        %3 = select <16 x i1> %2, <16 x double> zeroinitializer, <16 x double> %0
                        ret <16 x double> %3"""
# `a` where it is at least `tiny`, else 0.
@eval @inline without_tiny(a::Doubles) = Base.llvmcall($WITHOUT_TINY, Doubles, Tuple{Doubles}, a)
@eval @inline without_tiny(a::Lanes) = Base.llvmcall($WITHOUT_TINY_FLOATS, Lanes, Tuple{Lanes}, a)
@inline without_tiny(a::T) where {T<:Union{Float32,Float64}} = a < tiny(T) ? zero(T) : a

# The exponent field, less its bias: the largest e with 2^e <= a, of normal numbers.
const DOUBLE_EXPONENT = """%2 = bitcast <16 x double> %0 to <16 x i64>
                           %3 = lshr <16 x i64> %2, $(every_long(52))
                           %4 = sub <16 x i64> %3, $(every_long(1023))
                           %5 = icmp eq <16 x i64> %2, zeroinitializer
                           %6 = select <16 x i1> %5, <16 x i64> $(every_long(EXPONENT_OF_ZERO)), <16 x i64> %4
                           %7 = trunc <16 x i64> %6 to <16 x i32>
                           ret <16 x i32> %7"""
const FLOAT_EXPONENT = exponent_code(0)
# floor(log2(a)); of 0, `EXPONENT_OF_ZERO`.
@eval @inline floor_exponents(a::Doubles) = Base.llvmcall($DOUBLE_EXPONENT, IntLanes, Tuple{Doubles}, a)
@eval @inline floor_exponents(a::Lanes) = Base.llvmcall($FLOAT_EXPONENT, IntLanes, Tuple{Lanes}, a)

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
@eval @inline powers(::Type{Float64}, e::IntLanes) = Base.llvmcall($DOUBLE_POWER, Doubles, Tuple{IntLanes}, e)
@inline powers(::Type{Float32}, e::IntLanes) = power_of_two(e)

"2^e of one number, as [`powers`](@ref)."
@inline double_power(e::Integer) = e < -1022 ? 0.0 : reinterpret(Float64, (min(Int64(e), 1023) + 1023) << 52)

"floor(log2(a)) of one number; of 0, `EXPONENT_OF_ZERO`."
@inline double_exponent(a::Float64) = a == 0 ? Int(EXPONENT_OF_ZERO) : Int(reinterpret(UInt64, a) >> 52) - 1023

"Sixteen numbers of a table, as `T`."
@inline lanes(::Type{T}, a::NTuple{LANES,VecElement{T}}) where {T} = a
const WIDENED_LANES = """%2 = fpext <16 x float> %0 to <16 x double>
                         ret <16 x double> %2"""
@eval @inline lanes(::Type{Float64}, a::Lanes) = Base.llvmcall($WIDENED_LANES, Doubles, Tuple{Lanes}, a)

# Eight values of a table, for one row.

for (T, number) in ((Float64, "double"), (Float32, "float"))
    Eight = NTuple{8,VecElement{T}}
    splatted = """%2 = insertelement <8 x $number> undef, $number %0, i32 0
                  %3 = shufflevector <8 x $number> %2, <8 x $number> undef, <8 x i32> zeroinitializer
                  ret <8 x $number> %3"""
    @eval @inline eight(x::$T) = Base.llvmcall($splatted, $Eight, Tuple{$T}, x)
    for (name, operation) in ((:mul, "fmul"), (:add, "fadd"))
        body = """%3 = $operation <8 x $number> %0, %1
                  ret <8 x $number> %3"""
        @eval @inline $name(a::$Eight, b::$Eight) = Base.llvmcall($body, $Eight, Tuple{$Eight,$Eight}, a, b)
    end
end

"The next eight numbers at `p`, as `T`."
@inline eight(::Type{Float64}, p::Ptr{Float64}) = unsafe_load(Ptr{NTuple{8,VecElement{Float64}}}(p))
@inline eight(::Type{Float32}, p::Ptr{Float32}) = unsafe_load(Ptr{NTuple{8,VecElement{Float32}}}(p))
const WIDENED = """%2 = fpext <8 x float> %0 to <8 x double>
                   ret <8 x double> %2"""
@eval @inline eight(::Type{Float64}, p::Ptr{Float32}) =
    Base.llvmcall($WIDENED, NTuple{8,VecElement{Float64}}, Tuple{NTuple{8,VecElement{Float32}}}, eight(Float32, p))

# Plain numbers, whose sums have an order, too.

"The sum, added up from the first on."
function sum_in_order(numbers)
    own = 0.0
    for x in numbers
        own += x
    end
    return own
end

"Divides weights by their sum; equal ones where that is 0."
function normalise_weights!(weights)
    total = sum_in_order(weights)
    for i in eachindex(weights)
        weights[i] = total < TINY ? 1 / length(weights) : weights[i] / total
    end
end
